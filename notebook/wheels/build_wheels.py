"""Downloads the wheels that the solver notebook installs offline: vLLM, oss-harmony, and what they need.

Run it on Kaggle as a script with internet on, on the same image as the solver notebook, and attach its output there. It
runs anywhere else too, as long as Python's version is the image's: `python build_wheels.py FOLDER`.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# One setting. vLLM up to 0.17 runs on the image's CUDA 12.8 driver; newer ones need a driver for CUDA 13.
VLLM = "0.17.0"
WANTED = (f"vllm=={VLLM}", "oss-harmony>=0.0.11")


def main(folder: Path, wanted: Sequence[str] = WANTED) -> int:
    """Fills `folder` and checks that it is enough for an installation without a network."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "--only-binary", ":all:", "--dest", str(folder), *wanted], check=True)
    offline = ["install", "--dry-run", "--ignore-installed", "--no-index", "--find-links", str(folder)]
    subprocess.run([*pip, *offline, *wanted], check=True)
    wheels = sorted(folder.glob("*.whl"))
    print(f"{len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 1e9:.2f} GB, in {folder.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
