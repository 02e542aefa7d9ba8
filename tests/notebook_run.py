"""Runs a built notebook as Kaggle does, in its own process, so that a test can run it without a network.

    python notebook_run.py local FOLDER           every cell, with the local gateway
    python notebook_run.py rerun FOLDER CSV       cells up to the serving one, with the gateway in another process

FOLDER contains notebook.ipynb and, for a rerun, the competition's folder with the stand-in package. Writes executed.ipynb and
times.json there; in a rerun the gateway writes to gateway/.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import grpc
import nbclient
import nbformat

_LIMIT_S = 900


async def run(mode: str, folder: Path, csv: str | None = None) -> None:
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    # nbclient waits 4 s for a cell's last output, and leaves out what comes later: on a busy machine a cell looked cut.
    client = nbclient.NotebookClient(
        notebook,
        timeout=_LIMIT_S,
        startup_timeout=_LIMIT_S,
        iopub_timeout=_LIMIT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    started = time.monotonic()
    times: dict[str, float] = {}
    executing = asyncio.create_task(client.async_execute())
    try:
        if mode == "local":
            await executing
        else:
            assert csv is not None
            await _rerun(folder, csv, executing, times, started)
    finally:
        times["total"] = time.monotonic() - started
        (folder / "times.json").write_text(json.dumps(times))
        nbformat.write(notebook, folder / "executed.ipynb")


async def _rerun(folder: Path, csv: str, executing: asyncio.Task[object], times: dict[str, float], started: float) -> None:
    (folder / "gateway").mkdir()
    package = folder / "competition" / "kaggle_evaluation"
    gateway = await asyncio.create_subprocess_exec(sys.executable, package / "aimo_3_gateway.py", csv, cwd=folder / "gateway")
    listening = asyncio.create_task(asyncio.to_thread(_wait_for_server, times, started))
    ended = asyncio.create_task(gateway.wait())
    # The serving cell never ends by itself, so the gateway's end ends the run.
    await asyncio.wait([ended, executing], return_when=asyncio.FIRST_COMPLETED)
    if executing.done():
        gateway.kill()
        executing.result()
        raise RuntimeError("the notebook ended before the gateway did")
    executing.cancel()
    await asyncio.gather(executing, listening, return_exceptions=True)


def _wait_for_server(times: dict[str, float], started: float) -> None:
    with grpc.insecure_channel("localhost:50051", options=[("grpc.max_reconnect_backoff_ms", 100)]) as channel:
        grpc.channel_ready_future(channel).result(timeout=300)
    times["listening"] = time.monotonic() - started
    times["listening_wall"] = time.time()


if __name__ == "__main__":
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    if sys.argv[1] == "rerun":
        os.environ["KAGGLE_IS_COMPETITION_RERUN"] = "1"
        os.environ["STAND_IN_HOST"] = "localhost"
    asyncio.run(run(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
