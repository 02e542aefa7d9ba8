"""What failed starts are read from: messages of vLLM 0.17 to 0.32 and of what it runs on, as they stand in its output."""

from __future__ import annotations

import pytest

from aimo_solver.server.failures import Failure, read_failure
from aimo_solver.server.failures import FailureCause as Cause

CORE = "(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] "
FRAME = CORE + '  File "/usr/local/lib/python3.12/dist-packages/vllm/'
ENDED = "(APIServer pid=223598) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.74 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
    "605.88 MiB is free."
)
CAPTURING = "(EngineCore_DP0 pid=270) Capturing CUDA graphs (decode, FULL):  30%|███ | 31/102 [00:01<00:03, 22.06it/s]"
SAMPLES = [
    (["api_server.py: error: unrecognized arguments: --no-such-flag --other-flag"], Cause.FLAG),
    (
        ["api_server.py: error: argument --moe-backend: invalid choice: 'nonsense' (choose from 'aiter', 'auto', 'cutlass')"],
        Cause.FLAG,
    ),
    (
        ["pydantic_core._pydantic_core.ValidationError: 1 validation error for CompilationConfig", "cudagraph_mode"],
        Cause.FLAG,
    ),
    ([CORE + "ValueError: Async scheduling is not compatible with disable_padded_drafter_batch=True."], Cause.FLAG),
    (["    sock.bind(addr)", "OSError: [Errno 98] Address already in use"], Cause.PORT),
    (
        ["torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. EADDRINUSE"],
        Cause.PORT,
    ),
    (
        [
            CORE + "ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory utilization "
            "(0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
            ENDED,
        ],
        Cause.LOADING_MEMORY,
    ),
    (
        [FRAME + 'model_executor/model_loader/base_loader.py", line 55, in load_model', CORE + OUT_OF_MEMORY],
        Cause.LOADING_MEMORY,
    ),
    ([FRAME + 'v1/spec_decode/eagle.py", line 900, in load_model', CORE + OUT_OF_MEMORY], Cause.LOADING_MEMORY),
    ([CAPTURING, CORE + OUT_OF_MEMORY, ENDED], Cause.CAPTURE_MEMORY),
    ([FRAME + 'compilation/cuda_graph.py", line 266, in __call__', CORE + OUT_OF_MEMORY], Cause.CAPTURE_MEMORY),
    (
        [
            CAPTURING,
            CORE + "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try "
            "lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
        ],
        Cause.CAPTURE_MEMORY,
    ),
    (
        [CORE + "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"],
        Cause.CONTEXT,
    ),
    (
        [
            "(EngineCore_DP0 pid=1094) ValueError: To serve at least one request with the models's max seq len (262144), (24.0 "
            "GiB KV cache is needed, which is larger than the available KV cache memory (3.18 GiB). Based on the available "
            "memory, the estimated maximum model length is 34736. Try increasing `gpu_memory_utilization` or decreasing"
        ],
        Cause.CONTEXT,
    ),
    (
        [
            '  File "/x/vllm/engine/arg_utils.py", line 2000, in create_speculative_config',
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig",
            "  Value error, Invalid repository ID or local directory specified: '/none'.",
        ],
        Cause.DRAFT,
    ),
    (
        [FRAME + 'model_executor/models/llama_eagle3.py", line 230, in load_weights', CORE + "KeyError: 'embed_tokens'"],
        Cause.DRAFT,
    ),
    (
        [
            CORE + "    self.drafter.load_model(self.model)",
            FRAME + 'v1/spec_decode/llm_base_proposer.py", line 1327, in load_model',
            CORE + "RuntimeError: Cannot find any model weights with `/draft`",
        ],
        Cause.DRAFT,
    ),
    (
        [CORE + "ValueError: moe_backend='cutlass' is not supported for MXFP4 MoE. Expected one of ['marlin', 'triton']."],
        Cause.EXPERTS,
    ),
    ([CORE + "NotImplementedError: No MXFP4 MoE backend supports the deployment configuration. "], Cause.EXPERTS),
    (
        [FRAME + 'model_executor/layers/fused_moe/oracle/mxfp4.py", line 631, in x', CORE + "RuntimeError: no kernel"],
        Cause.EXPERTS,
    ),
    ([CORE + "RuntimeError: CUDA error: an illegal memory access was encountered"], Cause.DRIVER),
    (
        [CORE + "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing"],
        Cause.DRIVER,
    ),
    (["RuntimeError: The NVIDIA driver on your system is too old (found version 12040)."], Cause.DRIVER),
    (
        ["RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`"],
        Cause.DRIVER,
    ),
    (["ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"], Cause.IMPORT),
    (
        ["/opt/env/bin/python: Error while finding module specification for 'vllm.entrypoints.openai.api_server'"],
        Cause.IMPORT,
    ),
    ([CORE + "ModuleNotFoundError: No module named 'triton_kernels'"], Cause.LIBRARY),
    (
        ["(APIServer pid=2) RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}"],
        Cause.KILLED,
    ),
    (
        [CORE + "AssertionError: Error in memory profiling. Initial free memory 40.0 GiB, current free memory 50.0"],
        Cause.MEASURED,
    ),
    ([CORE + "AssertionError", ENDED], Cause.UNKNOWN),
    (
        [
            "(APIServer pid=2) WARNING 11-22 00:20:24 [interface.py:2] ImportError: undefined symbol: x",
            "(EngineCore pid=3) INFO 11-22 00:20:24 [mxfp4.py:2] MXFP4 MoE backend 'TRITON' does not support the deployment",
            CORE + "AssertionError",
        ],
        Cause.UNKNOWN,
    ),
    ([], Cause.UNKNOWN),
]


@pytest.mark.parametrize(("output", "cause"), SAMPLES, ids=lambda value: value.value if isinstance(value, Cause) else "")
def test_messages_are_read(output: list[str], cause: Cause) -> None:
    around = [
        "INFO 01-01 00:00:00 [api_server.py:1] vLLM API server version 0.26.0",
        *output,
        "Traceback (most recent call last):",
    ]
    assert read_failure(around, 1).cause is cause


@pytest.mark.parametrize(
    ("code", "cause"),
    [(None, Cause.TIMED_OUT), (-9, Cause.KILLED), (137, Cause.KILLED), (-11, Cause.UNKNOWN)],
)
def test_without_a_message_the_exit_code_counts(code: int | None, cause: Cause) -> None:
    assert read_failure(["INFO all is well"], code).cause is cause


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("unrecognized arguments: --a-b --c=3 --d", ("--a-b", "--c", "--d")),
        ("argument --tensor-parallel-size/-tp: invalid int value: 'x'", ("--tensor-parallel-size", "-tp")),
        ("argument --speculative-config: Value {a: --b} cannot be converted", ("--speculative-config",)),
    ],
)
def test_all_refused_flags_are_found(said: str, flags: tuple[str, ...]) -> None:
    assert read_failure([f"api_server.py: error: {said}"], 2).flags == flags


def test_the_line_of_an_error_is_kept_rather_than_its_place() -> None:
    output = [FRAME + 'v1/spec_decode/eagle.py", line 1', CORE + "    weights()", CORE + "KeyError: 'embed_tokens'", ENDED]
    assert read_failure(output, 1).line == CORE + "KeyError: 'embed_tokens'"


def test_a_death_without_a_message_is_unknown_and_its_first_error_is_kept() -> None:
    """As a server of vLLM 0.26 on an H200 died."""
    dead = "(APIServer pid=3839) ERROR 11-22 00:55:02 [async_llm.py:704] vllm.v1.engine.exceptions.EngineDeadError: EngineCore"
    assert read_failure([dead, "", "(APIServer pid=3839) INFO:     Shutting down"], 1) == Failure(Cause.UNKNOWN, dead)


def test_what_the_server_reports_about_memory_is_kept() -> None:
    free = "ValueError: Free memory on device cuda:0 (40.0/80.0 GiB) on startup is less than desired GPU memory utilization (0.96"
    assert read_failure([free], 1) == Failure(Cause.LOADING_MEMORY, free, memory_share=0.48)
    longest = "the available KV cache memory (3.18 GiB). Based on it, the estimated maximum model length is 34736."
    assert read_failure([f"is larger than {longest}"], 1).context_tokens == 34_736
    derived = "max_model_len (10000000) is greater than the derived max_model_len (max_position_embeddings=4096.0 or"
    assert read_failure([derived], 1) == Failure(Cause.CONTEXT, derived, context_tokens=4_096)


def test_only_the_beginning_of_a_line_and_the_end_of_the_output_are_read() -> None:
    assert read_failure(['File "' * 200_000] * 3 + ["moe backend " * 100_000, "experts" * 100_000], 1).cause is Cause.UNKNOWN
