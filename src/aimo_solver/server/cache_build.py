"""Makes and packs a compile cache on the target GPU; not part of the notebook."""

from __future__ import annotations

import json
import logging
import tarfile
import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from aimo_solver.errors import CacheError
from aimo_solver.server.compile_cache import STAMP_NAME, Stamp, make_stamp, with_cache
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.process import ServerProcess
from aimo_solver.server.warmup import warm_up

# Kaggle unpacks archives with the usual endings on upload, and FlashInfer's files would lose their times, by which it
# decides what is up to date.
ARCHIVE_SUFFIX = ".aimocache"

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


def pack_cache(stamp: Stamp, archive: Path) -> int:
    """Packs the cache below `stamp.root` into one file; returns its size in bytes.

    Raises:
        CacheError: there is nothing to pack, or the archive cannot be written.
    """
    root = Path(stamp.root)
    files = sorted(file for file in root.rglob("*") if file.is_file() and not file.name.endswith((".lock", ".tmp")))
    if not files:
        raise CacheError(f"{root} holds no compile cache; make one with `aimo-solver cache build`")
    part = archive.with_name(archive.name + ".part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(part, "w:gz", compresslevel=6) as tar:
            text = json.dumps(asdict(stamp), indent=1).encode()
            header = tarfile.TarInfo(STAMP_NAME)
            header.size = len(text)
            tar.addfile(header, BytesIO(text))  # first, so that `read_stamp` reads nothing else
            for file in files:
                tar.add(file, f"cache/{file.relative_to(root)}", recursive=False)
        part.replace(archive)
    except OSError as error:
        raise CacheError(f"{archive} cannot be written: {error}") from None
    return archive.stat().st_size
