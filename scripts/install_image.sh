#!/usr/bin/env bash
# Makes a virtual environment with the packages of Kaggle's image, for tests/image. Without Python 3.12 it makes none.
#
# usage: scripts/install_image.sh VENV_DIR       (IMAGE_PYTHON chooses the interpreter, 3.12)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

for python in "${IMAGE_PYTHON:-}" python3.12 python3 "$HOME"/.pyenv/versions/3.12.*/bin/python; do
  # A name on PATH may be a shim of pyenv that only fails.
  if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.12 ]; then
    echo "installing the packages of Kaggle's image in $venv"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip --quiet --no-input install --no-deps -r requirements-image.txt
    touch "$venv/.ready"
    exit 0
  fi
done
echo "WARNING: no Python 3.12 was found, so tests/image is SKIPPED: nothing is tested on the versions of Kaggle's image." >&2
echo "WARNING: install Python 3.12, or set IMAGE_PYTHON to one." >&2
