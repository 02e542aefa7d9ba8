"""The competition's gateway. As a script it runs the rerun's side: `python aimo_3_gateway.py TEST.csv`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import kaggle_evaluation  # noqa: F401 (for sys.path)

import base_gateway
import polars as pl

USE_PRIVATE_SET = False
_DEFAULT = "/kaggle/input/ai-mathematical-olympiad-progress-prize-3/test.csv"


class AIMO3Gateway(base_gateway.BaseGateway):
    """One call per row, columns as positional Series of length 1."""

    def __init__(self, data_paths=None):
        super().__init__(data_paths or (_DEFAULT,))
        self.client.endpoint_deadline_s = 32_400

    def generate(self):
        table = pl.read_csv(self.data_paths[0])
        if not USE_PRIVATE_SET:
            table = table.sample(fraction=1.0, shuffle=True)
        for number in range(len(table)):
            row = table.slice(number, 1)
            yield row.get_columns(), row.get_column("id")


if __name__ == "__main__":
    if os.getenv("KAGGLE_IS_COMPETITION_RERUN"):
        AIMO3Gateway(sys.argv[1:] or None).run()
    else:
        print("not a rerun; nothing to do")
