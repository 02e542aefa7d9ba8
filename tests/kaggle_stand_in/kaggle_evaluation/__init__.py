"""Stand-in for Kaggle's package; see the README beside it."""

import sys
from pathlib import Path

_HERE = Path(__file__).parent
for _folder in (_HERE, _HERE / "core", _HERE / "core" / "generated"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
