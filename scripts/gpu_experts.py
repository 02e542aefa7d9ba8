"""The stage `experts` of `gpu_bench.py`: gpt-oss-120b's expert products alone, with vLLM's Triton kernels and random weights.

The weights of one layer are larger than any cache, and each call takes other experts, so they are read from memory every time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from aimo_solver.lab.bench.random_weights import SCALES
from aimo_solver.lab.bench.table import BenchResult, Value

_EXPERTS, _PER_TOKEN, _WIDTH = 128, 4, 2_880
_CALLS = 12  # in one CUDA graph, each with experts of its own
_REPETITIONS = 15
_COLUMNS = ("tokens", "warps", "experts", "first us", "second us", "first TB/s", "second TB/s", "of baseline", "difference")


def compare(tokens: Sequence[int] = (1, 4, 8, 12, 16, 24, 32, 64, 256, 1_024), warps: Sequence[int] = (8, 4)) -> BenchResult:
    """Times both products of a layer for numbers of tokens and of warps per block; the first of `warps` is the baseline.

    "of baseline" is the time of both products divided by the baseline's. "difference" is the norm of the difference of the
    layer's outputs to the baseline's, divided by the norm of those.

    Raises:
        RuntimeError: this vLLM has no Triton kernels for MXFP4.
    """
    import torch
    from vllm.utils.import_utils import has_triton_kernels

    if not has_triton_kernels():  # it also makes them importable
        raise RuntimeError("this vLLM has no Triton kernels for MXFP4")
    torch.manual_seed(0)
    layer = _Layer()
    rows: list[tuple[Value, ...]] = []
    baseline: dict[int, tuple[float, Any]] = {}
    for number in warps:
        products = layer.products(number)
        for count in tokens:
            first, second, taken, output = products(count)
            total_us, expected = baseline.setdefault(count, (first + second, output))
            difference = float((output - expected).norm() / expected.norm())
            sizes = (taken * layer.bytes_first / first / 1e6, taken * layer.bytes_second / second / 1e6)
            rows.append((count, number, taken, first, second, *sizes, (first + second) / total_us, difference))
            print(rows[-1], flush=True)
    notes = (f"microseconds: medians of {_REPETITIONS} replays of a CUDA graph of {_CALLS} calls",)
    return BenchResult(name="experts", columns=_COLUMNS, rows=tuple(rows), notes=notes)


class _Layer:
    """Random MXFP4 weights of one layer: (experts, outputs, inputs / 2) and their scales (experts, outputs, inputs / 32)."""

    def __init__(self) -> None:
        self._first = _draw(2 * _WIDTH)
        self._second = _draw(_WIDTH)
        self.bytes_first, self.bytes_second = (sum(part[0].numel() for part in half) for half in (self._first, self._second))

    def products(self, warps: int) -> Callable[[int], tuple[float, float, float, Any]]:
        """Returns a function that takes a number of tokens and returns microseconds per call of either product, the distinct
        experts per call, and the outputs of all calls.
        """
        import torch
        import triton_kernels.swiglu
        from triton_kernels.matmul_ogs import FlexCtx, FnSpecs, FusedActivation, PrecisionConfig, matmul_ogs
        from triton_kernels.routing import routing
        from vllm.model_executor.layers.quantization.utils.mxfp4_utils import _swizzle_mxfp4

        def laid_out(half: tuple[Any, Any]) -> tuple[Any, Any]:
            weights, flex, scales = _swizzle_mxfp4(*half, warps)
            return weights, PrecisionConfig(weight_scale=scales, flex_ctx=FlexCtx(rhs_data=flex))

        (first, precise_first), (second, precise_second) = laid_out(self._first), laid_out(self._second)
        no_bias = [torch.zeros(_EXPERTS, width, device="cuda") for width in (2 * _WIDTH, _WIDTH)]
        activation = FusedActivation(FnSpecs("swiglu", triton_kernels.swiglu.swiglu_fn, ("alpha", "limit")), (1.702, 7.0), 2)

        def measure(tokens: int) -> tuple[float, float, float, Any]:
            draw = torch.Generator(device="cuda").manual_seed(tokens)

            def normal(*shape: int) -> Any:
                return torch.randn(*shape, device="cuda", generator=draw).bfloat16()

            inputs, logits = normal(tokens, _WIDTH), [normal(tokens, _EXPERTS) for _ in range(_CALLS)]
            routes = [routing(row, _PER_TOKEN, sm_first=False) for row in logits]
            middle = torch.empty(_CALLS, 1, tokens * _PER_TOKEN, _WIDTH, device="cuda", dtype=torch.bfloat16)
            outputs = torch.empty(_CALLS, 1, tokens, _WIDTH, device="cuda", dtype=torch.bfloat16)

            def up() -> None:
                options = {"precision_config": precise_first, "fused_activation": activation}
                for (route, gather, _), out in zip(routes, middle, strict=True):
                    matmul_ogs(inputs, first, no_bias[0], route, gather_indx=gather, y=out, **options)

            def down() -> None:
                for (route, _, scatter), given, out in zip(routes, middle, outputs, strict=True):
                    options = {"precision_config": precise_second, "gammas": route.gate_scal}
                    matmul_ogs(given.squeeze(0), second, no_bias[1], route, scatter_indx=scatter, y=out, **options)

            times = [_microseconds(product) / _CALLS for product in (up, down)]
            taken = sum(row.topk(_PER_TOKEN, dim=1).indices.unique().numel() for row in logits) / _CALLS
            return times[0], times[1], taken, outputs.float()

        return measure


def _draw(outputs: int) -> tuple[Any, Any]:
    import torch

    weights = torch.randint(0, 256, (_EXPERTS, outputs, _WIDTH // 2), dtype=torch.uint8, device="cuda")
    return weights, torch.randint(*SCALES, (_EXPERTS, outputs, _WIDTH // 32), dtype=torch.uint8, device="cuda")


def _microseconds(work: Callable[[], None]) -> float:
    """Captures `work` in a CUDA graph; returns the median time of a replay."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        times: list[float] = []
        for _ in range(_REPETITIONS + 3):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) * 1_000)
    return statistics.median(times[3:])
