"""Injects a fault into a vLLM server during a problem, and measures how the run recovers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "data" / "pocket-model"


def inject(out: Path, work: Path, tiny: bool, fault: str) -> dict[str, Any]:
    """Runs the embedded model and injects a fault into its server in the middle of a problem.

    Args:
        out: folder for the logs.
        work: folder for the run.
        fault: "kill" (SIGKILL to all its processes), "stop" (SIGSTOP) or "memory" (another process takes all GPU memory, and
            requests need more than the server has).
    """
    import psutil

    run = work / "runs" / f"fault-{fault}"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "aimo_solver.cli", "evaluate", str(ROOT / "data" / "warmup.csv"), "--model", str(POCKET)]
    command += ["--out", str(run), "--limit", "3" if tiny else "8", "--set", "server.stall_s=8", "--set", "voting.equal=8"]
    if fault == "memory":  # memory that others can take, steps that need much of it, and long problems
        roomy = '["--max-num-batched-tokens", "65536", "--max-num-seqs", "48"]'
        for setting in ("server.memory_share=0.3", f"server.extra_args={roomy}", "voting.stop=never", "solver.max_attempts=96"):
            command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    with (
        (out / f"faults.{fault}.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
        contextlib.ExitStack() as until_detected,
    ):
        take_memory = until_detected.enter_context(memory_taker()) if fault == "memory" else None
        events = _events(run / "events.jsonl", process)
        pid = next(event["pid"] for event in events if event["kind"] == "server_ready")
        next(event for event in events if event["kind"] == "problem_started")
        time.sleep(0.3)
        injected = time.monotonic()
        if take_memory is not None:
            take_memory()
            _request_memory(next(event["command"] for event in _seen(run) if event["kind"] == "server_starting"))
        else:
            for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                one.kill() if fault == "kill" else one.suspend()
        detected = next((event for event in events if event["kind"] in ("server_fault", "run_finished")), {"kind": "nothing"})
        detected_s = time.monotonic() - injected
        until_detected.close()
        back = next((event for event in events if event["kind"] == "server_ready"), None)
        back_s = time.monotonic() - injected
        code = process.wait()
    summary = json.loads((run / "summary.json").read_text())
    shutil.copy(run / "events.jsonl", out / f"faults.{fault}.events.jsonl")
    shutil.copy(run / "server.log", out / f"faults.{fault}.server.log")
    return {
        "detected": detected["kind"],
        "detected_s": detected_s,
        "ready_again_s": back_s if back is not None else None,
        "exit_code": code,
        **{name: summary[name] for name in ("problems", "right", "seconds")},
    }


def _seen(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def _request_memory(command: str) -> None:
    """Sends requests that make the server allocate memory: log-probabilities of every token of long prompts."""
    import aiohttp

    port, model = (re.search(rf"--{name} (\S+)", command) for name in ("port", "served-model-name"))
    assert port is not None
    assert model is not None
    body = {"model": model[1], "max_tokens": 1, "prompt_logprobs": 20}

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        prompt = [(number * 97 + step * 31) % 1_000 for step in range(4_000)]
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(f"http://127.0.0.1:{port[1]}/v1/completions", json=body | {"prompt": prompt}) as response:
                await response.read()

    async def all_at_once() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            await asyncio.gather(*(ask(session, number) for number in range(16)))

    asyncio.run(all_at_once())


def _events(path: Path, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the events of a run as they are written, until its process ends."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)
    with path.open() as file:
        rest = ""
        while True:
            ended = process.poll() is not None
            *lines, rest = (rest + file.read()).split("\n")
            yield from map(json.loads, lines)
            if ended:
                return
            time.sleep(0.01)


@contextlib.contextmanager
def memory_taker(share: float = 1.0, below: float = 1.0) -> Iterator[Callable[[], None]]:
    """Yields a function that takes GPU memory, in ever smaller pieces, and keeps it until the block ends.

    Args:
        share: of the whole memory; at most what is free is taken.
        below: it waits until the free share of the memory is below this.
    """
    code = (
        "import time, torch\nkept = [torch.empty(1, device='cuda')]\nprint('here', flush=True)\ninput()\n"
        f"left = int({share} * torch.cuda.mem_get_info()[1])\n"
        f"while torch.cuda.mem_get_info()[0] > {below} * torch.cuda.mem_get_info()[1]: time.sleep(0.02)\n"
        "for size in (1 << 30, 1 << 27, 1 << 24, 1 << 21):\n"
        "    try:\n        while left >= size:\n"
        "            kept.append(torch.empty(size, dtype=torch.uint8, device='cuda'))\n            left -= size\n"
        "    except torch.OutOfMemoryError: pass\n"
        "print('taken', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as taker:
        assert taker.stdin is not None
        assert taker.stdout is not None
        stdin, stdout = taker.stdin, taker.stdout
        stdout.readline()  # it has imported torch and opened the GPU

        def take() -> None:
            stdin.write(b"\n")
            stdin.flush()
            stdout.readline()

        try:
            yield take
        finally:
            taker.kill()
