"""Installs what the image lacks from attached wheels, offline, beside the image's own packages.

The wheels go into a virtual environment that sees the image's packages, because pip must not swap a package under a
process that has already imported it. The vLLM server runs on that environment's Python; this process finds there what
it has not got itself, and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from aimo_solver.errors import WheelError
from aimo_solver.paths import KAGGLE_INPUT, find_wheels

NEEDED: Mapping[str, str] = MappingProxyType({"vllm": "vllm", "openai_harmony": "oss-harmony"})  # module: distribution

_ONE_BY_ONE = "import json,subprocess,sys\nfor command in json.loads(sys.argv[1]): subprocess.run(command, check=True)"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installation:
    """An installation that runs in the background, or has nothing to do.

    Attributes:
        python: the interpreter that finds everything once `wait` has returned.
        process: pip at work; None if nothing is missing.
        output: pip's output.
        started: `time.monotonic` of the start.
    """

    python: Path
    process: subprocess.Popen[bytes] | None
    output: Path
    started: float

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns when everything is installed and can be imported here.

        Raises:
            WheelError: pip failed or took longer than `timeout_s`; the end of its output is in the message.
        """
        if self.process is None:
            return
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise WheelError(f"pip was not ready after {timeout_s:.0f} s", self._tail()) from None
        if code != 0:
            raise WheelError(f"pip ended with exit code {code}", self._tail())
        # At the end of sys.path: what this process has of its own keeps its place.
        site.addsitedir(str(_site_packages(self.python.parent.parent)))
        importlib.invalidate_caches()
        log.info("wheels installed after %.1f s", time.monotonic() - self.started)

    def _tail(self) -> list[str]:
        return self.output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if self.output.is_file() else []


NOTHING_TO_INSTALL = Installation(Path(sys.executable), None, Path(), 0.0)


def install(needed: Mapping[str, str] = NEEDED, root: Path = KAGGLE_INPUT) -> Installation:
    """Starts to install what cannot be imported, and returns at once.

    Without wheels anywhere below `root` it says so in the log and does nothing: whether what is missing is needed at all
    depends on the model.
    """
    missing = [distribution for module, distribution in needed.items() if importlib.util.find_spec(module) is None]
    folders = find_wheels(root) if missing else ()
    if not missing:
        log.info("nothing to install: %s are there", ", ".join(needed.values()))
        return NOTHING_TO_INSTALL
    if not folders:
        log.error("missing: %s, and no wheels below %s; attach the output of the wheels notebook", ", ".join(missing), root)
        return NOTHING_TO_INSTALL
    started = time.monotonic()
    target = Path(tempfile.mkdtemp(prefix="aimo-wheels-"))
    python = _environment(target)
    links = [argument for folder in folders for argument in ("--find-links", str(folder))]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-input", "--no-compile"]
    # One after the other: some versions of vLLM bring openai-harmony, whose files oss-harmony must replace.
    commands = [[*pip, *links, distribution] for distribution in missing]
    log.info("installing %s from %s", ", ".join(missing), ", ".join(map(str, folders)))
    output = target / "pip.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _ONE_BY_ONE, json.dumps(commands)], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    return Installation(python, process, output, started)


def _environment(target: Path) -> Path:
    """A virtual environment that finds this process's packages behind its own; returns its Python."""
    venv.create(target, with_pip=False, symlinks=True)
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
    (_site_packages(target) / "image.pth").write_text("".join(lines), encoding="utf-8")
    return target / "bin" / "python"


def _site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
