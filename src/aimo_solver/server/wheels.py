"""Installs the packages that the image lacks from attached wheels, offline and beside the image's own packages.

The wheels go into a virtual environment that sees the image's packages, because pip must not replace a package under a
process that has already imported it. The vLLM server runs on that environment's Python; this process finds there only
what it lacks.

The environment is always the same folder, because torch.compile looks its results up by the paths of vLLM's sources. It is
reused if it holds the same wheels, and made again otherwise. Every process that uses it holds a lock on it; a process that
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
import shlex
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

_NAME = "aimo-wheels"
_COMPLETE = "complete"  # a file in a finished environment that holds its fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installation:
    """An installation, which may still run in the background.

    Attributes:
        environment: where the wheels go; None if nothing is missing, or nothing can be installed.
        process: pip; None if everything is installed already.
        started: `time.monotonic` of the start.
        lock: descriptor that keeps other processes from replacing the environment; open until this process ends.
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
        """Where `python` looks for packages: first among the wheels, then where this process does."""
        return tuple(sys.path) if self.environment is None else (str(_site_packages(self.environment)), *sys.path)

    def renewed(self) -> Installation:
        """Returns a new installation if this one failed or found no wheels, since a mount can come late; else this one."""
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
            fcntl.flock(self.lock, fcntl.LOCK_SH)  # from now on other processes may use the same wheels
        # At the end of sys.path: the image's own packages keep their place.
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
            os.killpg(process.pid, signal.SIGKILL)  # with its child pip, which would go on writing
            problem = f"pip was not ready after {timeout_s:.0f} s"
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
        raise WheelError(problem, output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


NOTHING_TO_INSTALL = Installation()


def install(needed: Mapping[str, str] = NEEDED, root: Path = KAGGLE_INPUT) -> Installation:
    """Starts the installation of what cannot be imported, and returns at once.

    Without wheels below `root`, or without a folder to put them in, it only logs an error: some models need none of them.
    """
    try:
        return _install(needed, root)
    except OSError as error:
        log.error("nothing can be installed: %s", error)
        return NOTHING_TO_INSTALL


def _install(needed: Mapping[str, str], root: Path) -> Installation:
    missing = [distribution for module, distribution in needed.items() if not _in_image(module)]
    if not missing:
        log.info("nothing to install: %s are installed", ", ".join(needed.values()))
        return NOTHING_TO_INSTALL
    folders = find_wheels(root)
    if not folders:
        log.error("missing: %s, and no wheels below %s; attach the output of the wheels notebook", ", ".join(missing), root)
        return NOTHING_TO_INSTALL
    started = time.monotonic()
    fingerprint = _fingerprint(missing, folders)
    target, lock = _claim(fingerprint)
    if _is_complete(target, fingerprint):
        log.info("%s: already installed in %s", ", ".join(missing), target)
        return Installation(target, None, started, lock)
    python = _make_environment(target)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-input", "--no-compile"]
    pip += [f"--find-links={folder}" for folder in folders]
    # One by one: some versions of vLLM install openai-harmony, whose files oss-harmony must replace.
    commands = [shlex.join([*pip, distribution]) for distribution in missing]
    commands.append(f"printf {fingerprint} > {shlex.quote(str(target / _COMPLETE))}")
    log.info("installing %s from %s", ", ".join(missing), ", ".join(map(str, folders)))
    with (target / "pip.log").open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", " && ".join(commands)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],  # pip may outlive this process
        )
    return Installation(target, process, started, lock)


def _claim(fingerprint: str) -> tuple[Path, int | None]:
    """Returns the folder to install into and a lock on it: the fixed one, or a new one while others use that one."""
    target = Path(tempfile.gettempdir()) / _NAME
    try:
        lock = os.open(target.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if _try_lock(lock, fcntl.LOCK_EX) and not _is_complete(target, fingerprint):
            if target.exists():
                shutil.rmtree(target)
            return target, lock
        if _try_lock(lock, fcntl.LOCK_SH) and _is_complete(target, fingerprint):
            return target, lock
        os.close(lock)
    except OSError as error:
        log.warning("%s", error)
    own = Path(tempfile.mkdtemp(prefix=_NAME))
    log.warning("%s is in use; in %s torch.compile's results will not be found again", target, own)
    return own, None


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fingerprint(missing: Sequence[str], folders: Sequence[Path]) -> str:
    """Returns a hash of what an environment holds: the wheels, and the Python and the packages that it builds on."""
    wheels = sorted((wheel.name, wheel.stat().st_size) for folder in folders for wheel in folder.glob("*.whl"))
    return hashlib.sha256(json.dumps([missing, wheels, sys.executable, sys.version, _image_packages()]).encode()).hexdigest()


def _is_complete(target: Path, fingerprint: str) -> bool:
    complete = target / _COMPLETE
    # The folder of another user is not trusted.
    return complete.is_file() and complete.stat().st_uid == os.getuid() and complete.read_text(encoding="utf-8") == fingerprint


def _make_environment(target: Path) -> Path:
    """Makes a virtual environment that finds this process's packages after its own; returns its Python."""
    venv.create(target, with_pip=False, symlinks=True)
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in _image_packages()]
    (_site_packages(target) / "image.pth").write_text("".join(lines), encoding="utf-8")
    return target / "bin" / "python"


def _in_image(module: str) -> bool:
    """Returns whether the module can be imported without what an earlier call installed."""
    spec = importlib.util.find_spec(module)
    return spec is not None and not (spec.origin or "").startswith(_own_prefix())


def _image_packages() -> list[str]:
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return [path for path in folders if not path.startswith(_own_prefix())]


def _own_prefix() -> str:
    return str(Path(tempfile.gettempdir()) / _NAME)


def _site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
