"""Why a vLLM server did not start, or died, read from the end of its output.

The messages are those of vLLM 0.17 to 0.32, torch, argparse and the CUDA runtime; tests/server/test_failures.py has samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_LINES = 2_000  # read from the end, where the errors are
_LINE_CHARS = 1_000


class FailureCause(StrEnum):
    """The cause of a failed start."""

    LOADING_MEMORY = "out of memory while loading"
    CAPTURE_MEMORY = "out of memory while capturing graphs"
    CONTEXT = "context too long"
    FLAG = "refused flag"
    MEASURED = "GPU memory changed while it was measured"
    IMPORT = "vLLM cannot be imported"
    LIBRARY = "import error"  # of a vLLM that runs
    PORT = "port in use"
    DRIVER = "CUDA or driver error"
    DRAFT = "draft model failed"
    EXPERTS = "experts' backend refused"
    TIMED_OUT = "not ready in time"
    KILLED = "killed"
    NOT_STARTED = "no process could be started"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed start, or one death.

    Attributes:
        line: the line of the output that the cause was read from; "" if none.
        flags: the names of the refused flags.
        memory_share: share of the GPU's memory that the next start can take, if the server reports what was free.
        context_tokens: longest context that the model and the KV cache have room for, if the server reports it.
    """

    cause: FailureCause
    line: str = ""
    flags: tuple[str, ...] = ()
    memory_share: float | None = None
    context_tokens: int | None = None


# In order: a message that names its remedy comes before the errors that follow from it.
# fmt: off
_MESSAGES = tuple((cause, re.compile(pattern)) for cause, pattern in (
    (FailureCause.FLAG, r"error: unrecognized arguments: |error: argument |validation errors? for CompilationConfig"),
    (FailureCause.FLAG, r"[Aa]sync scheduling is (?:not|only)|does not support async scheduling"),
    (FailureCause.MEASURED, r"Error in memory profiling"),
    (FailureCause.PORT, r"Address already in use|EADDRINUSE"),
    (FailureCause.DRIVER, r"Cannot re-initialize CUDA in forked subprocess"),
    (FailureCause.LOADING_MEMORY, r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|"
     r"Free memory on device .{0,200} less than|CUBLAS_STATUS_ALLOC_FAILED"),
    (FailureCause.CONTEXT, r"No available memory for the cache blocks|greater than the derived max_model_len|"
     r"larger than the (?:available KV cache memory|maximum number of tokens)"),
    (FailureCause.DRAFT, r'validation errors? for SpeculativeConfig|File "[^"]{0,300}(?:spec_decode/|speculative\.py|eagle)'),
    (FailureCause.EXPERTS, r"(?i)moe[ _]backend.{0,200} support|experts.{0,100} does not support|"
     r'File "[^"]{0,300}(?:fused_moe/|mxfp4)'),
    (FailureCause.DRIVER, r"CUDA (?:driver )?error|CUDA driver version|no CUDA-capable device|No CUDA GPUs are available|"
     r"NVIDIA driver on your system|CUBLAS_STATUS_|NCCL error|NVMLError|Failed to infer device type"),
    (FailureCause.IMPORT, r"(?:^|\) |\] )(?:ImportError|ModuleNotFoundError): |cannot open shared object file|"
     r"undefined symbol: |python[\d.]*: (?:No module named|Error while finding module)"),
    (FailureCause.KILLED, r"died unexpectedly \(exit code: -9|Failed core proc\(s\): \{.*: -9[,}]"),
))
# fmt: on
_CAPTURE = re.compile(r'Capturing CUDA graph|File "[^"]{0,300}(?:cuda_?graph|torch/cuda/graphs)|in capture_model')
_FREE = re.compile(r"Free memory on device .{0,50}?\((\d+(?:\.\d+)?)/(\d+(?:\.\d+)?) GiB\)")
_LONGEST = re.compile(r"estimated maximum model length is (\d+)|stored in KV cache \((\d+)\)|derived max_model_len \(\w+=(\d+)")
_HARMLESS = re.compile(r"\b(?:DEBUG|INFO|WARNING)(?: \d\d-\d\d |: )|^\s*$")  # healthy servers print such lines too
_RUNS = re.compile(r"^\(\w+ pid=\d+\) ")  # vLLM marks its processes' output once they run
_ERROR = re.compile(r"\w(?:Error|Exception): ")
_NAME = re.compile(r"--?[a-zA-Z][\w-]*")
_SPARE_SHARE = 0.02  # of the GPU's memory, left free for what other processes take meanwhile


def read_failure(output: Sequence[str], exit_code: int | None) -> Failure:
    """Returns why a server failed.

    Args:
        output: the last lines of its output.
        exit_code: negative for a signal; None if it still ran, but was not ready or hung.
    """
    if exit_code is None:
        return Failure(FailureCause.TIMED_OUT)
    everything = [line[:_LINE_CHARS] for line in output[-_LINES:]]
    lines = [line for line in everything if not _HARMLESS.search(line)]
    for cause, message in _MESSAGES:
        # The first such line is the root: vLLM repeats it for each process that ends with it.
        found = next((number for number, line in enumerate(lines) if message.search(line)), None)
        if found is not None:
            error = next((line for line in lines[found:] if _ERROR.search(line)), lines[found])
            return _details(cause, error if "File " in lines[found] else lines[found], everything)
    error = next((line for line in lines if _ERROR.search(line)), lines[-1] if lines else "")
    return Failure(FailureCause.KILLED if exit_code in (-9, 137) else FailureCause.UNKNOWN, error)


def _details(cause: FailureCause, line: str, lines: Iterable[str]) -> Failure:
    if cause is FailureCause.FLAG:
        return Failure(cause, line, flags=_refused(line))
    if cause is FailureCause.LOADING_MEMORY:
        free = _FREE.search(line)
        share = max(0.0, float(free[1]) / float(free[2]) - _SPARE_SHARE) if free is not None and float(free[2]) else None
        captures = share is None and any(map(_CAPTURE.search, lines))
        return Failure(FailureCause.CAPTURE_MEMORY if captures else cause, line, memory_share=share)
    if cause is FailureCause.CONTEXT:
        longest = _LONGEST.search(line)
        return Failure(cause, line, context_tokens=int(longest[longest.lastindex or 0]) if longest is not None else None)
    if cause is FailureCause.IMPORT and any(map(_RUNS.search, lines)):
        return Failure(FailureCause.LIBRARY, line)
    return Failure(cause, line)


def _refused(line: str) -> tuple[str, ...]:
    if "CompilationConfig" in line:
        return ("--compilation-config",)
    if "sync scheduling" in line:
        return ("--async-scheduling",)
    said = line.partition("error: ")[2]
    if said.startswith("argument "):  # one, as "argument --tensor-parallel-size/-tp: invalid int value: 'x'"
        said = said.partition(": ")[0].replace("/", " ")
    names = (_NAME.match(word) for word in said.split())
    return tuple(name[0].replace("_", "-") for name in names if name is not None)
