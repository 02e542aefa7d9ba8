#!/usr/bin/env bash
# Makes a virtual environment with the locked CPU dependencies and this package in it.
#
# usage: scripts/install.sh VENV_DIR       (PYTHON chooses the interpreter, 3.11 or newer)
#
# torch comes first: the plain package from the default index would bring gigabytes of CUDA. A CPU build that pip's own
# settings offer (find-links) is taken as it is; everywhere else uv fetches it from PyTorch's own index.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}
torch=torch==2.13.0
uv=uv==0.13.8

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer; set PYTHON" >&2; exit 1; }
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --no-input)

have=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])' 2>/dev/null || true)
if [ "torch==$have" != "$torch" ]; then
  echo "installing $torch (CPU build)"
  if ! "${pip[@]}" install --no-index --no-deps "$torch" 2>/dev/null; then
    "${pip[@]}" install "$uv"
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu --no-deps "$torch"
  fi
fi
echo "installing the locked packages"
"${pip[@]}" install --no-deps -r requirements.lock
"${pip[@]}" install --no-deps --no-build-isolation -e .
