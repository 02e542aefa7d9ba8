"""Installs what the image lacks from attached wheels, offline, beside the image's own packages.

The wheels go into a virtual environment that sees the image's packages, because pip must not swap a package under a
process that has already imported it. The vLLM server runs on that environment's Python; this process finds there what
it has not got itself, and nothing else.

The environment is always the same folder, because torch.compile looks its results up by the paths of vLLM's sources. It
is used again if the same wheels are in it, and made anew otherwise. Whoever uses it holds a lock on it; a process that
needs other wheels meanwhile gets a folder of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from aimo_solver.errors import WheelError
from aimo_solver.paths import KAGGLE_INPUT, find_wheels

NEEDED: Mapping[str, str] = MappingProxyType({"vllm": "vllm", "openai_harmony": "oss-harmony"})  # module: distribution

_ONE_BY_ONE = """import json, pathlib, subprocess, sys
for command in json.loads(sys.argv[1]):
    subprocess.run(command, check=True)
pathlib.Path(sys.argv[2]).write_text(sys.argv[3])"""
_NAME = "aimo-wheels"
_COMPLETE = "complete"  # in a whole environment: the fingerprint of what is in it

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installation:
    """An installation that runs in the background, or has nothing to do.

    Attributes:
        environment: where the wheels go; None if nothing is missing, or nothing can be done about it.
        process: pip at work; None if everything is there already.
        started: `time.monotonic` of the start.
        lock: descriptor that keeps others from replacing the environment; open until this process ends.
    """

    environment: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    lock: int | None = None

    @property
    def python(self) -> Path:
        """The interpreter that finds everything once `wait` has returned."""
        return Path(sys.executable) if self.environment is None else self.environment / "bin" / "python"

    @property
    def path(self) -> tuple[str, ...]:
        """Where `python` looks for packages: among the wheels first, then where this process does."""
        return tuple(sys.path) if self.environment is None else (str(_site_packages(self.environment)), *sys.path)

    def renewed(self) -> Installation:
        """This installation, or a new one if it failed or found nothing to install from; a mount may have come late."""
        failed = self.process is not None and self.process.poll() not in (None, 0)
        return install() if failed or self.environment is None else self

    def wait(self, timeout_s: float) -> None:
        """Returns when everything is installed and can be imported here.

        Raises:
            WheelError: pip failed or took longer than `timeout_s`; the end of its output is in the message.
        """
        if self.environment is None:
            return
        if self.process is not None:
            self._wait_for_pip(self.process, self.environment / "pip.log", timeout_s)
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_SH)  # from now on others may use the same wheels
        # At the end of sys.path: what this process has of its own keeps its place.
        site.addsitedir(str(_site_packages(self.environment)))
        importlib.invalidate_caches()
        log.info("wheels installed after %.1f s", time.monotonic() - self.started)

    def _wait_for_pip(self, process: subprocess.Popen[bytes], output: Path, timeout_s: float) -> None:
        try:
            code = process.wait(timeout_s)
            if code == 0:
                return
            problem = f"pip ended with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with pip behind it, which would go on writing
            problem = f"pip was not ready after {timeout_s:.0f} s"
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
        raise WheelError(problem, output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


NOTHING_TO_INSTALL = Installation()


def install(needed: Mapping[str, str] = NEEDED, root: Path = KAGGLE_INPUT) -> Installation:
    """Starts to install what cannot be imported, and returns at once.

    Without wheels anywhere below `root`, or without a place to put them, it says so in the log and does nothing: whether
    what is missing is needed at all depends on the model.
    """
    try:
        return _install(needed, root)
    except OSError as error:
        log.error("nothing can be installed: %s", error)
        return NOTHING_TO_INSTALL


def _install(needed: Mapping[str, str], root: Path) -> Installation:
    missing = [distribution for module, distribution in needed.items() if not _in_image(module)]
    folders = find_wheels(root) if missing else ()
    if not missing:
        log.info("nothing to install: %s are there", ", ".join(needed.values()))
        return NOTHING_TO_INSTALL
    if not folders:
        log.error("missing: %s, and no wheels below %s; attach the output of the wheels notebook", ", ".join(missing), root)
        return NOTHING_TO_INSTALL
    started = time.monotonic()
    fingerprint = _fingerprint(missing, folders)
    target, lock = _claim(fingerprint)
    if _is_complete(target, fingerprint):
        log.info("%s: installed in %s already", ", ".join(missing), target)
        return Installation(target, None, started, lock)
    python = _environment(target)
    links = [argument for folder in folders for argument in ("--find-links", str(folder))]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-input", "--no-compile"]
    # One after the other: some versions of vLLM bring openai-harmony, whose files oss-harmony must replace.
    commands = [[*pip, *links, distribution] for distribution in missing]
    log.info("installing %s from %s", ", ".join(missing), ", ".join(map(str, folders)))
    with (target / "pip.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _ONE_BY_ONE, json.dumps(commands), str(target / _COMPLETE), fingerprint],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],  # pip may outlive this process
        )
    return Installation(target, process, started, lock)


def _claim(fingerprint: str) -> tuple[Path, int | None]:
    """The folder to install into, with a lock on it: the fixed one, or one of our own if others are using that one."""
    target = Path(tempfile.gettempdir()) / _NAME
    try:
        lock = os.open(target.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if _locked(lock, fcntl.LOCK_EX) and not _is_complete(target, fingerprint):
            if target.exists():
                shutil.rmtree(target)
            return target, lock
        if _locked(lock, fcntl.LOCK_SH) and _is_complete(target, fingerprint):
            return target, lock
        os.close(lock)
    except OSError as error:
        log.warning("%s", error)
    own = Path(tempfile.mkdtemp(prefix=_NAME))
    log.warning("%s is in use, so %s is taken, where torch.compile's results are not found again", target, own)
    return own, None


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fingerprint(missing: Sequence[str], folders: Sequence[Path]) -> str:
    """Says what an environment would hold: the wheels, and the Python and the packages that it builds on."""
    wheels = sorted((wheel.name, wheel.stat().st_size) for folder in folders for wheel in folder.glob("*.whl"))
    return hashlib.sha256(json.dumps([missing, wheels, sys.executable, sys.version, _image_packages()]).encode()).hexdigest()


def _is_complete(target: Path, fingerprint: str) -> bool:
    complete = target / _COMPLETE
    # Another user could have put anything there.
    return complete.is_file() and complete.stat().st_uid == os.getuid() and complete.read_text(encoding="utf-8") == fingerprint


def _environment(target: Path) -> Path:
    """A virtual environment that finds this process's packages behind its own; returns its Python."""
    venv.create(target, with_pip=False, symlinks=True)
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in _image_packages()]
    (_site_packages(target) / "image.pth").write_text("".join(lines), encoding="utf-8")
    return target / "bin" / "python"


def _in_image(module: str) -> bool:
    """Whether the module can be imported, and not only because an earlier call here installed it."""
    spec = importlib.util.find_spec(module)
    return spec is not None and not (spec.origin or "").startswith(_own_prefix())


def _image_packages() -> list[str]:
    own = _own_prefix()
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and not path.startswith(own)]


def _own_prefix() -> str:
    return str(Path(tempfile.gettempdir()) / _NAME)


def _site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
