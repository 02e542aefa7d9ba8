"""Makes a compile cache on the target GPU; not part of the notebook, which packs what its own server compiled."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from aimo_solver.server.compile_cache import Stamp, make_stamp, with_cache
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.process import ServerProcess
from aimo_solver.server.warmup import warm_up

log = logging.getLogger(__name__)


async def build_cache(plan: LaunchPlan, root: Path, server_log: Path) -> Stamp:
    """Fills `root` by starting the server twice and sending the first requests of a run.

    Twice, because the first start keeps some of Triton's kernels where only a start that compiles looks for them.

    Raises:
        ServerStartError: the server did not come up.
    """
    for start in ("cold", "warm"):
        server = ServerProcess(with_cache(plan, root).command, server_log)
        began = time.monotonic()
        async with plan.engine() as engine:
            try:
                await server.start(engine.ready, plan.config.server.start_timeout_s)
                ready = time.monotonic() - began
                warmed = await warm_up(engine, slots=plan.slots, vocabulary=plan.vocabulary)
            finally:
                await server.stop()
        log.info("%s start: ready after %.1f s, first requests took %.1f s more", start, ready, warmed)
    return make_stamp(plan, root)
