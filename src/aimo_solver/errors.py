"""Every exception this library raises on purpose.

AimoError
├── UserError                 bad input; the message says what to do (CLI exit code 2)
│   ├── ConfigError           an option that is unknown or impossible
│   ├── ProblemFileError      a problem CSV that cannot be used
│   ├── ModelError            a model folder that cannot be used
│   ├── EndpointError         an endpoint that does not answer or does not serve the model
│   ├── RunDirectoryError     a run directory that cannot be written, resumed or read
│   ├── RecordsError          logged attempts that cannot be replayed
│   └── CacheError            a compile cache that cannot be made, packed or read
├── ServerError               a vLLM server of ours failed
│   ├── ServerStartError      it never became ready: command line and end of the log are in the message
│   └── ServerDiedError       it was ready and is gone
├── EngineError               a completion request failed
│   ├── EngineUnavailable     no answer from the server; worth another try
│   ├── EngineRejected        the server refused the request; another try would fail too
│   │   └── ContextExceeded   it does not fit the model's context; asking for less may help
│   └── EngineLost            the server is gone for good
├── KernelError               a Python session failed for reasons of its own, not of the code it ran
│   ├── KernelStartError      a kernel did not come up
│   ├── KernelMessageError    a kernel sent what cannot be read
│   ├── LeaseTimeoutError     no kernel was free in time
│   └── PoolClosedError       a lease was asked of a closed pool
├── BootError                 the parts of a run did not come up
├── PathNotFoundError         none of the places where Kaggle mounts a thing holds it
└── LocalGatewayError         a local run that Kaggle's gateway would have ended without a submission
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class AimoError(Exception):
    """Base of all errors of this library."""


class UserError(AimoError):
    """Bad input from the user. `str(error)` is one line that says what to do."""


class ConfigError(UserError):
    """An option that is unknown, has the wrong type or an impossible value.

    Attributes:
        option: dotted name, for instance ``solver.slots``.
    """

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"option {option}: {problem}")
        self.option = option


class ProblemFileError(UserError):
    """A problem CSV that cannot be used.

    Attributes:
        path: the file.
        row: 1-based data row, or None if the whole file is meant.
    """

    def __init__(self, path: Path, problem: str, row: int | None = None) -> None:
        place = f"{path}" if row is None else f"{path}, row {row}"
        super().__init__(f"{place}: {problem}")
        self.path = path
        self.row = row


class ModelError(UserError):
    """A model folder that cannot be used.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"model {path}: {problem}")
        self.path = path


class EndpointError(UserError):
    """An endpoint that does not answer, or does not serve the model asked for.

    Attributes:
        url: the endpoint's base URL.
    """

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"endpoint {url}: {problem}")
        self.url = url


class RunDirectoryError(UserError):
    """A run directory that cannot be written, resumed or read.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"run directory {path}: {problem}")
        self.path = path


class RecordsError(UserError):
    """Logged attempts that cannot be replayed.

    Attributes:
        path: the file.
        row: 1-based record, or None if the whole file is meant.
    """

    def __init__(self, path: Path, problem: str, row: int | None = None) -> None:
        super().__init__(f"{path}: {problem}" if row is None else f"{path}, record {row}: {problem}")
        self.path = path
        self.row = row


class CacheError(UserError):
    """A compile cache that cannot be made, packed or read."""


class ServerError(AimoError):
    """A vLLM server of ours failed.

    Attributes:
        command: its command line.
        exit_code: None while it still runs.
        log_tail: the last lines it wrote.
    """

    def __init__(self, problem: str, command: Sequence[str], exit_code: int | None, log_tail: Sequence[str]) -> None:
        tail = "\n  ".join(log_tail) or "(empty)"
        super().__init__(f"{problem}\ncommand: {' '.join(command)}\nlast lines of its log:\n  {tail}")
        self.command = tuple(command)
        self.exit_code = exit_code
        self.log_tail = tuple(log_tail)


class ServerStartError(ServerError):
    """The server never became ready."""


class ServerDiedError(ServerError):
    """The server was ready and is gone."""


class EngineError(AimoError):
    """A completion request failed."""


class EngineUnavailable(EngineError):
    """The server did not answer, or broke off; the same request may succeed later."""


class EngineRejected(EngineError):
    """The server refused the request.

    Attributes:
        status: HTTP status.
        body: the server's own words.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"server answered {status}: {body[:500]}")
        self.status = status
        self.body = body


class ContextExceeded(EngineRejected):
    """The request does not fit the model's context; a shorter one may.

    Attributes:
        context_tokens: what the server says that it holds; None if it does not say.
    """

    def __init__(self, status: int, body: str, context_tokens: int | None) -> None:
        super().__init__(status, body)
        self.context_tokens = context_tokens


class EngineLost(EngineError):
    """The server is gone for good; whoever waits for it waits in vain."""


class KernelError(AimoError):
    """A Python session failed for reasons of its own, not of the code it ran."""


class KernelStartError(KernelError):
    """A kernel did not come up."""


class KernelMessageError(KernelError):
    """A kernel sent what cannot be read."""


class LeaseTimeoutError(KernelError):
    """No kernel was free in time.

    Attributes:
        timeout_s: how long was waited.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no kernel was free within {round(timeout_s, 2):g} s")
        self.timeout_s = timeout_s


class PoolClosedError(KernelError):
    """A lease was asked of a pool that is closed."""


class WheelError(AimoError):
    """What the image lacks could not be installed.

    Attributes:
        log_tail: the last lines pip wrote.
    """

    def __init__(self, problem: str, log_tail: Sequence[str]) -> None:
        tail = "\n  ".join(log_tail) or "(empty)"
        super().__init__(f"{problem}\nlast lines of its output:\n  {tail}")
        self.log_tail = tuple(log_tail)


class BootError(AimoError):
    """The parts of a run did not come up."""


class PathNotFoundError(AimoError):
    """None of the places where Kaggle mounts a thing holds it.

    Attributes:
        thing: what was looked for.
        tried: every path that was tried.
    """

    def __init__(self, thing: str, tried: Sequence[Path]) -> None:
        super().__init__(f"{thing} not found; tried " + ", ".join(str(path) for path in tried))
        self.thing = thing
        self.tried = tuple(tried)


class LocalGatewayError(AimoError):
    """A local run that Kaggle's gateway would have ended without a submission.

    Attributes:
        kind: Kaggle's name of the failure, for instance ``INVALID_SUBMISSION``.
    """

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(f"{kind}: {problem}")
        self.kind = kind
