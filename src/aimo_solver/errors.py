"""Every exception that modules of the notebook raise on purpose, and the bases of all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class AimoError(Exception):
    """Base of all errors of this library."""


class UserError(AimoError):
    """Bad input from the user. The message is one line that states the remedy; the command line exits with code 2."""


class ConfigError(UserError):
    """An option that is unknown, has the wrong type or an impossible value."""

    def __init__(self, option: str, problem: str) -> None:
        """`option` is its dotted name, for instance ``solver.slots``."""
        super().__init__(f"option {option}: {problem}")


class ModelError(UserError):
    """A model folder that cannot be used."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"model {path}: {problem}")


class RunDirectoryError(UserError):
    """A run directory that cannot be written, resumed or read."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"run directory {path}: {problem}")


class CacheError(UserError):
    """A compile cache that cannot be made, packed or read."""


class ServerError(AimoError):
    """Our vLLM server failed.

    Attributes:
        exit_code: None while it still runs.
        log_tail: the end of its log; the message has the last 15 lines.
    """

    def __init__(self, problem: str, command: Sequence[str], exit_code: int | None, log_tail: Sequence[str]) -> None:
        tail = "\n  ".join(log_tail[-15:]) or "(empty)"
        super().__init__(f"{problem}\ncommand: {' '.join(command)}\nlast lines of its log:\n  {tail}")
        self.exit_code = exit_code
        self.log_tail = tuple(log_tail)


class ServerStartError(ServerError):
    """The server never became ready."""


class ServerSpawnError(ServerStartError):
    """No process could be started."""


class EngineError(AimoError):
    """A completion request failed."""


class EngineUnavailable(EngineError):
    """The server did not answer, or broke off; the same request may succeed later."""


class EngineRejected(EngineError):
    """The server refused the request with the HTTP status `status`; the same request would fail again."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"server answered {status}: {body[:500]}")
        self.status = status


class ContextExceeded(EngineRejected):
    """The request does not fit the model's context (`context_tokens`, if the server reports it); a shorter one may."""

    def __init__(self, status: int, body: str, context_tokens: int | None) -> None:
        super().__init__(status, body)
        self.context_tokens = context_tokens


class EngineLost(EngineError):
    """The server is lost for good."""


class KernelError(AimoError):
    """A Python session failed for reasons other than the code it ran."""


class KernelStartError(KernelError):
    """A kernel did not start."""


class KernelMessageError(KernelError):
    """A kernel sent an unreadable message."""


class LeaseTimeoutError(KernelError):
    """No kernel was free in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no kernel was free within {round(timeout_s, 2):g} s")


class PoolClosedError(KernelError):
    """The pool is closed."""


class WheelError(AimoError):
    """A package that the image lacks could not be installed. `log_tail` has the last lines of pip's output."""

    def __init__(self, problem: str, log_tail: Sequence[str]) -> None:
        tail = "\n  ".join(log_tail) or "(empty)"
        super().__init__(f"{problem}\nlast lines of its output:\n  {tail}")
        self.log_tail = tuple(log_tail)


class BootError(AimoError):
    """The parts of a run did not start."""


class RehearsalError(AimoError):
    """A run outside the competition showed that the notebook is not fit to be submitted. The message says why."""


class PathNotFoundError(AimoError):
    """Something is not in any of the places where Kaggle mounts things. `tried` lists them."""

    def __init__(self, thing: str, tried: Sequence[Path]) -> None:
        super().__init__(f"{thing} not found; tried " + ", ".join(str(path) for path in tried))
        self.tried = tuple(tried)


class LocalGatewayError(AimoError):
    """A local run that Kaggle's gateway would have ended without a submission; `kind` is Kaggle's name for the failure."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(f"{kind}: {problem}")
        self.kind = kind
