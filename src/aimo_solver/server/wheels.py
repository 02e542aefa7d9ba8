"""Installs vLLM from attached wheels, offline, in an environment of its own.

The wheels hold everything that vLLM needs, so its environment does not see the image's packages and none of them can break
it. The vLLM server runs on that environment's Python; this process takes from it only what it lacks itself. If it cannot be
installed, or vLLM cannot be imported from it, the next installation is an overlay: an environment that sees the image's
packages behind its own, and needs wheels only for what the image lacks. The first is an overlay too if the image has vLLM.

If uv is among the wheels, it fills the environment, in less than half of pip's time (docs/versions.md); if it fails, pip does.
An overlay is pip's alone, because uv does not see the image's packages behind it.

Whether vLLM can be imported is only tested after a server that did not start: the import takes about as long as the first
third of the server's start, and would delay every boot for a fault that is rare.

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
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aimo_solver.errors import ServerSpawnError, ServerStartError, WheelError
from aimo_solver.paths import KAGGLE_INPUT, find_wheels

# module: distribution; the server's is the first
NEEDED: Mapping[str, str] = {"vllm": "vllm", "openai_harmony": "oss-harmony"}
SERVER_MODULE = "vllm.entrypoints.openai.api_server"

_NAME = "aimo-wheels"
_IMPORT_S = 180.0  # it takes 10 to 20 s
_UV_S = 240  # it takes 10 to 30 s
# These keep the image's packages and files of the working directory out of an isolated environment; an empty variable counts
# as unset.
_OWN_PACKAGES: Mapping[str, str] = {"PYTHONPATH": "", "PYTHONHOME": "", "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
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
        overlay: whether the environment sees the image's packages behind its own.
    """

    environment: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    lock: int | None = None
    overlay: bool = False

    @property
    def python(self) -> Path:
        """The interpreter that finds everything once `wait` has returned."""
        return Path(sys.executable) if self.environment is None else self.environment / "bin" / "python"

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables for `python`, which keep other packages out of an isolated environment."""
        return {} if self.environment is None or self.overlay else _OWN_PACKAGES

    @property
    def path(self) -> tuple[str, ...]:
        """Where `python` looks for packages."""
        if self.environment is None:
            return tuple(sys.path)
        own = str(_site_packages(self.environment))
        return (own, *sys.path) if self.overlay else (own,)

    def renewed(self, failure: BaseException | None = None) -> Installation:
        """Returns the installation for the next boot, after the last one ended with `failure`.

        It is a new one if this one found no wheels, since a mount can appear late; one of the other kind (overlay or not) if this
        one failed, or if the server did not start and cannot be imported; and this one otherwise.
        """
        if self.environment is None:
            return install()
        if self.process is not None and self.process.poll() not in (None, 0):
            why = "its installation failed"
        elif not isinstance(failure, ServerStartError) or isinstance(failure, ServerSpawnError):
            return self  # without a process nothing is known about the wheels
        elif (problem := self.import_problem()) is not None:
            why = f"vLLM cannot be imported from it: {problem}"
        else:
            return self
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
        log.warning("%s is given up (%s); next: %s", _kind(self.overlay), why, _kind(not self.overlay))
        return install(overlay=not self.overlay)

    def import_problem(self) -> str | None:
        """Imports the server's module as the server does; returns the last line of the error, None if there is none."""
        command = [str(self.python), "-c", f"import {SERVER_MODULE}"]
        environment = {**os.environ, **self.variables}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_IMPORT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]

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
        if (own := str(_site_packages(self.environment))) not in sys.path:
            sys.path.append(own)
        importlib.invalidate_caches()
        log.info("wheels installed after %.1f s", time.monotonic() - self.started)

    def _wait_for_pip(self, process: subprocess.Popen[bytes], output: Path, timeout_s: float) -> None:
        try:
            code = process.wait(timeout_s)
            if code == 0:
                return
            problem = f"pip ended with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its child pip, which would keep writing
            problem = f"pip was not ready after {timeout_s:.0f} s"
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
        raise WheelError(problem, output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


NOTHING_TO_INSTALL = Installation()


def install(needed: Mapping[str, str] = NEEDED, root: Path = KAGGLE_INPUT, *, overlay: bool = False) -> Installation:
    """Starts the installation of what is `needed` and cannot be imported, and returns at once.

    Without wheels below `root`, or without a folder to put them in, it only logs an error: some models need none of them.
    """
    try:
        return _install(needed, root, overlay=overlay)
    except OSError as error:
        log.error("nothing can be installed: %s", error)
        return NOTHING_TO_INSTALL


def _install(needed: Mapping[str, str], root: Path, *, overlay: bool) -> Installation:
    missing = {module: distribution for module, distribution in needed.items() if not _in_image(module)}
    if not missing:
        log.info("nothing to install: %s are installed", ", ".join(needed.values()))
        return NOTHING_TO_INSTALL
    folders = find_wheels(root)
    if not folders:
        lacking = ", ".join(missing.values())
        log.error("missing: %s, and no wheels below %s; attach the output of the wheels notebook", lacking, root)
        return NOTHING_TO_INSTALL
    overlay = overlay or next(iter(needed)) not in missing
    wanted = [*(missing if overlay else needed).values()]
    started = time.monotonic()
    fingerprint = _fingerprint(wanted, folders, overlay=overlay)
    target, lock = _claim(fingerprint)
    if _is_complete(target, fingerprint):
        log.info("%s: already installed in %s", ", ".join(wanted), target)
        return Installation(target, None, started, lock, overlay)
    _make_environment(target, overlay=overlay)
    installation = Installation(target, None, started, lock, overlay)
    log.info("installing %s from %s in %s", ", ".join(wanted), ", ".join(map(str, folders)), _kind(overlay))
    return replace(installation, process=_start_installing(installation, target, wanted, folders, fingerprint))


def _start_installing(
    installation: Installation, target: Path, wanted: Sequence[str], folders: Sequence[Path], fingerprint: str
) -> subprocess.Popen[bytes]:
    links = [f"--find-links={folder}" for folder in folders]
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(installation.python)]
    pip += ["install", "--no-index", "--no-input", "--no-compile", *links]
    program = _one_by_one(pip, wanted)
    if not installation.overlay and any(path for folder in folders for path in folder.glob("uv-*.whl")):
        uv = ["timeout", "--foreground", "--kill-after=5", str(_UV_S), str(target / "bin" / "uv"), "pip", "install"]
        uv += ["--python", str(installation.python), "--offline", "--no-index", "--no-config"]
        uv += [f"--cache-dir={target / 'cache'}", *links]  # on the same disk, so that files are linked and not copied
        emptied = f"rm -rf {shlex.quote(str(_site_packages(target)))}"
        program = f"{{ {_one_by_one(pip, ['uv'])} && {_one_by_one(uv, wanted)}; }} || {{ {emptied} && {program}; }}"
    program = f"{{ {program}; }} && printf {fingerprint} > {shlex.quote(str(target / _COMPLETE))}"
    others = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    with (target / "pip.log").open("wb") as output:
        return subprocess.Popen(
            ["/bin/sh", "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[] if installation.lock is None else [installation.lock],  # pip may outlive this process
            env={**others, **installation.variables, "PIP_CONFIG_FILE": os.devnull},
        )


def _one_by_one(installer: Sequence[str], wanted: Sequence[str]) -> str:
    """Returns shell commands; one for each, since vLLM may install openai-harmony, whose files oss-harmony must replace."""
    return " && ".join(shlex.join([*installer, distribution]) for distribution in wanted)


def _kind(overlay: bool) -> str:
    return "an overlay of the image's packages" if overlay else "an environment of its own"


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


def _fingerprint(wanted: Sequence[str], folders: Sequence[Path], *, overlay: bool) -> str:
    """Returns a hash of what an environment holds: the wheels, and the Python and the packages that it builds on."""
    wheels = sorted((wheel.name, wheel.stat().st_size) for folder in folders for wheel in folder.glob("*.whl"))
    base = [sys.executable, sys.version, _image_packages() if overlay else None]
    return hashlib.sha256(json.dumps([wanted, wheels, base]).encode()).hexdigest()


def _is_complete(target: Path, fingerprint: str) -> bool:
    complete = target / _COMPLETE
    # The folder of another user is not trusted.
    return complete.is_file() and complete.stat().st_uid == os.getuid() and complete.read_text(encoding="utf-8") == fingerprint


def _make_environment(target: Path, *, overlay: bool) -> None:
    """Makes a virtual environment; an overlay finds this process's packages after its own."""
    venv.create(target, with_pip=False, symlinks=True)
    if overlay:
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in _image_packages()]
        (_site_packages(target) / "image.pth").write_text("".join(lines), encoding="utf-8")


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
