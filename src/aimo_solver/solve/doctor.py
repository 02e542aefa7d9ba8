"""Examines a machine and a model before a run: what works, what will be slow, what is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import Config
from aimo_solver.errors import KernelError, ModelError
from aimo_solver.kernels.limits import Isolation
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import describe_environment
from aimo_solver.server import checks
from aimo_solver.server.checks import Check, Health
from aimo_solver.server.launch import check_model, plan_launch
from aimo_solver.server.machine import detect_gpus
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation

_KERNEL_S = 60.0
_CELL = "import mpmath, numpy, sympy; print(numpy.dot([2, 3], [9, 8]))"
_CELL_S = 30.0


async def examine(model: Path, config: Config, wheels: Installation = NOTHING_TO_INSTALL) -> list[Check]:
    """Makes every check; none raises. vLLM is imported in another process, and a real kernel is started."""
    machine = describe_environment()
    found = f"{machine['platform']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, Python {machine['python']}"
    gpus, imported, kernels = await asyncio.gather(
        asyncio.to_thread(detect_gpus, wheels.path), asyncio.to_thread(checks.vllm_check, wheels), _try_kernel(config)
    )
    made = [Check("machine", Health.OK, found), checks.gpu_check(gpus, wheels.path), imported]
    made += await asyncio.to_thread(_model_checks, model, config, wheels)
    return [*made, kernels, checks.disk_check(), checks.clock_check(config.budget)]


def _model_checks(model: Path, config: Config, wheels: Installation) -> list[Check]:
    try:
        check_model(model)
        chat = load_chat_format(model, config.prompt.family)
        plan = plan_launch(model, config, wheels)
    except ModelError as error:
        return [Check("model", Health.BROKEN, str(error), "--model takes the folder with config.json and tokenizer.json")]
    family = type(chat).__module__.rpartition(".")[2]
    found = f"{model}: family {family}, preset {plan.preset}, context {plan.context_tokens:,}"
    tokens = checks.estimate_kv_tokens(plan, config.solver.streams)
    return [
        Check("model", Health.OK, found),
        checks.flags_check(plan),
        checks.weights_check(plan),
        checks.kv_check(tokens, config.solver.streams, plan.context_tokens, estimated=True),
    ]


async def try_kernel(pool: KernelPool) -> Check:
    """Runs a cell in one of the pool's kernels, with the packages that models import most; names what isolates it."""
    try:
        async with asyncio.timeout(_KERNEL_S), pool.lease() as kernel:
            shown = (await kernel.execute(_CELL, timeout_s=_CELL_S)).as_text().strip()
    except (KernelError, TimeoutError, OSError):
        return Check("kernels", Health.BROKEN, "no kernel starts: attempts reason without Python", "pip install ipython")
    if shown != "42":
        found = f"a kernel starts and fails: {shown.splitlines()[-1][:200]}"
        return Check("kernels", Health.BROKEN, found, "docs/isolation.md has what limits a kernel")
    return _isolation_check(pool.isolation)


def _isolation_check(isolation: Collection[Isolation]) -> Check:
    found = f"isolated by {', '.join(sorted(isolation)) or 'limits only'}"
    contained = {Isolation.NAMESPACES, Isolation.LANDLOCK} & {*isolation}
    if not contained or not {Isolation.NETWORK, Isolation.SECCOMP} & {*isolation}:
        advice = "the model's code can reach files or the network; docs/isolation.md has what each needs"
        return Check("kernels", Health.WARNING, found, advice)
    return Check("kernels", Health.OK, found)


async def _try_kernel(config: Config) -> Check:
    pool = KernelPool(size=1, spares=0, preload=config.kernels.preload)
    try:
        return await try_kernel(pool)
    finally:
        await pool.close()
