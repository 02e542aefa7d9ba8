"""A server whose decode speed is measured: the options that start it, and what it says about itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp

from aimo_solver.lab.bench.decode import BANDWIDTH, Shape, bench_decode
from aimo_solver.lab.bench.loop import Target
from aimo_solver.lab.bench.random_weights import LOAD_FORMAT, expected_experts
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.solve.endpoint import EndpointError
from aimo_solver.solve.session import Session

Weights = Literal["real", "random", "dummy"]
"""Those of the model's files; random ones that route (`random_weights`); vLLM's, with which all tokens take the same experts."""

_CONTROL = "aimo_solver.lab.bench.random_weights.RoutingControl"


def server_options(weights: Weights, skew: float = 0.0, *, control: bool = False) -> dict[str, Any]:
    """Returns the options of `ServerConfig` for these weights.

    Restarts are off: a fallback would be measured instead of what was asked for.

    Args:
        control: makes `set_skew` possible; the server has to be started with VLLM_SERVER_DEV_MODE=1.
    """
    if weights == "real":
        return {"restarts": 0}
    if weights == "dummy":
        return {"restarts": 0, "load_format": "dummy"}
    extra = ["--model-loader-extra-config", json.dumps({"skew": skew})]
    extra += ["--worker-extension-cls", _CONTROL] if control else []
    return {"restarts": 0, "load_format": LOAD_FORMAT, "extra_args": extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeServer:
    """A running server.

    Attributes:
        skew: of random weights.
        kv_bytes: of one value in the KV cache.
        kv_tokens: what the KV cache holds; None if unknown.
        bandwidth: bytes per second of the GPUs that share a copy of the model; None if unknown.
        details: what the server's log says of its start.
    """

    target: Target
    shape: Shape
    weights: Weights
    skew: float
    kv_bytes: int
    kv_tokens: int | None
    bandwidth: float | None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    async def of(cls, session: Session, details: dict[str, Any], weights: Weights, skew: float = 0.0) -> Self:
        """Returns the server of a local session."""
        plan = session.plan
        assert plan is not None
        cache, sharing = plan.flag("--kv-cache-dtype"), plan.flag("--tensor-parallel-size")
        each = next((rate for gpu in plan.gpus for key, rate in BANDWIDTH.items() if key in gpu.name), None)
        one_copy = plan.config.server.data_parallel == 1
        shape = Shape.read(plan.model)
        if (plan.config.server.quantization or "").startswith("fp8"):  # by vLLM, when it loads the weights
            shape = replace(shape, expert_bits=8.0, attention_bits=8.0)
        return cls(
            target=Target.of(session),
            shape=shape,
            weights=weights,
            skew=skew,
            kv_bytes=1 if cache is not None and str(cache.value).startswith("fp8") else 2,
            kv_tokens=await session.engine.kv_cache_tokens(),
            bandwidth=each * int(sharing.value or 1) if each is not None and sharing is not None and one_copy else None,
            details=details,
        )

    def experts(self, streams: int) -> float | None:
        """Returns the distinct experts of a layer and step to expect; None with real weights, whose routing is unknown."""
        shape = self.shape
        if shape.experts == 1:
            return 1.0
        if self.weights == "real":
            return None
        if self.weights == "dummy":
            return float(shape.experts_per_token)
        return expected_experts(streams, shape.experts, shape.experts_per_token, skew=self.skew)

    async def measure(
        self,
        *,
        streams: Sequence[int],
        depths: Sequence[int],
        tokens: int,
        name: str = "decode",
        progress: Callable[[str], None] | None = None,
        on_rows: Callable[[BenchResult], None] = lambda result: None,
    ) -> BenchResult:
        """Measures every number of streams at every depth; see `bench_decode`."""
        experts = {count: taken for count in streams if (taken := self.experts(count)) is not None}
        own = {"weights": self.weights, "skew": self.skew, **self.details}

        def described(result: BenchResult) -> BenchResult:
            return replace(result, name=name, details={**result.details, **own})

        result = await bench_decode(
            self.target,
            self.shape,
            streams=streams,
            depths=depths,
            tokens=tokens,
            distinct=experts,
            kv_bytes=self.kv_bytes,
            kv_tokens=self.kv_tokens,
            bandwidth=self.bandwidth,
            progress=progress,
            on_rows=lambda partial: on_rows(described(partial)),
        )
        return described(result)

    async def set_skew(self, skew: float) -> Self:
        """Draws the routers' bias again; returns the server as it is then.

        Raises:
            EndpointError: the server was not started for it.
        """
        await self.post("collective_rpc", {"method": "redraw_routing", "args": [skew]})
        return replace(self, skew=skew)

    async def post(self, path: str, body: object = None) -> None:
        """Sends a request to one of the routes that vLLM has with VLLM_SERVER_DEV_MODE=1.

        Raises:
            EndpointError: it was not answered with 200.
        """
        async with aiohttp.ClientSession() as http, http.post(f"{self.target.base_url}/{path}", json=body) as response:
            if response.status != 200:
                raise EndpointError(self.target.base_url, f"/{path} answered {response.status}: {await response.text()}")


def read_start(server_log: Path) -> dict[str, Any]:
    """Reads from a vLLM log what its start took: seconds and GiB of CUDA graphs, and the backends."""
    log = server_log.read_text(encoding="utf-8", errors="replace") if server_log.exists() else ""  # made with the first line
    graphs = re.findall(r"Graph capturing finished in ([\d.]+) secs, took ([\d.-]+) GiB", log)
    backends = re.findall(r"Using \S+ (?:attention backend|Mxfp4 MoE backend)", log)
    return {
        "graphs_s": float(graphs[-1][0]) if graphs else None,
        "graphs_gib": float(graphs[-1][1]) if graphs else None,
        "backends": sorted(set(backends)),
    }
