"""A prompt variant in the notebook's settings cell, followed to the body of the request that the server gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import Config
from aimo_solver.kaggle.gateway import make_predict
from aimo_solver.kaggle.notebook import notebook_run
from aimo_solver.log.writer import RunLog
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation
from aimo_solver.solve import session
from aimo_solver.solve.attempt import Resources
from aimo_solver.solve.observer import Observer
from aimo_solver.solve.session import Session
from aimo_solver.solve.solver import Solver
from tests.chat_families import Family, family
from tests.conftest import ROOT
from tests.fakes import ScriptedPool
from tests.http_vllm import HttpVllm

PROMPT = {
    "mix": {"mine": 1},
    "variants": {
        "mine": {
            "identity": "You count.",
            "system": "Be careful.",
            "developer": "Answer in \\boxed{}.",
            "suffix": "Use {libraries}.",
            "tool_description": "Runs Python for {timeout_s} s, {output_chars} characters.",
            "reasoning_effort": "low",
            "temperature": 0.5,
            "top_p": 0.9,
            "min_p": 0.0,
            "top_k": 40,
        }
    },
}
TOOL = "Runs Python for 6 s, 4,000 characters."
USER = "What is 1 + 1?\n\nUse numpy, sympy and mpmath."
SYSTEM = "You count.\n\nBe careful.\n\nAnswer in \\boxed{}."

EXPECTED = {
    "harmony": (
        "<|start|>system<|message|>You count.\n\nBe careful.\nKnowledge cutoff: 2024-06\n\nReasoning: low\n\n"
        f"# Tools\n\n## python\n\n{TOOL}\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nAnswer in \\boxed{}.<|end|>"
        f"<|start|>user<|message|>{USER}<|end|><|start|>assistant"
    ),
    "gemma": (
        f'<bos><|turn>system\n<|think|>\n{SYSTEM}<|tool>declaration:python{{description:<|"|>{TOOL}<|"|>,parameters:'
        '{properties:{code:{description:<|"|>Python code.<|"|>,type:<|"|>STRING<|"|>}},required:[<|"|>code<|"|>],'
        f'type:<|"|>OBJECT<|"|>}}}}<tool|><turn|>\n<|turn>user\n{USER}<turn|>\n<|turn>model\n'
    ),
    "hermes": (
        f'<|im_start|>system\n{SYSTEM}\n\nTools: <tools>{{"type": "function", "function": {{"name": "python", "description": '
        f'"{TOOL}", "parameters": {{"type": "object", "properties": {{"code": {{"type": "string", "description": '
        '"Python code."}}, "required": ["code"]}}}</tools> Call: <tool_call>{...}</tool_call><|im_end|>\n'
        f"<|im_start|>user\n{USER}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "fenced": (
        f"<|begin|><|User|>Be careful.\n\nYou count.\n\nAnswer in \\boxed{{}}.\n\n{USER}\n\nTo run Python, write it in a "
        "block that opens with ```python and closes with ```. It is run as soon as the block closes, and its output follows in "
        f"a block that opens with ```output; never write an output block yourself. {TOOL}<|Assistant|><think>\n"
    ),
}


def request_of(model: Family, folder: Path, monkeypatch: pytest.MonkeyPatch, **prompt: Any) -> dict[str, Any]:
    """Runs the notebook with an edited settings cell on one problem; returns the body of its first request."""
    server = HttpVllm(turn=model.final("\\boxed{2}"))

    @asynccontextmanager
    async def opened(
        model: Path, config: Config, log: RunLog, observers: Sequence[Observer], wheels: Installation, history: object
    ) -> AsyncIterator[Session]:
        chat = load_chat_format(model, config.prompt.family)
        async with server.engine() as engine:
            resources = Resources(engine=engine, chat=chat, pool=ScriptedPool(), config=config)
            yield Session(Solver(resources, log, observers), engine, resources)

    monkeypatch.setattr(session, "local_session", opened)
    template = (ROOT / "notebook" / "template.md").read_text(encoding="utf-8")
    cell: dict[str, Any] = {}
    exec(template.partition("```python settings\n")[2].partition("```")[0], cell)
    settings = {**cell["SETTINGS"], "solver": {"slots": 1, "max_attempts": 1}, "prompt": prompt}
    run = notebook_run(str(model.folder), settings, NOTHING_TO_INSTALL, folder / "runs")
    run.start()
    try:
        assert make_predict(run)("p", "What is 1 + 1?")["answer"].to_list() == [2]
    finally:
        run.close()
    body: dict[str, Any] = server.requests[0]
    return body


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_variant_of_the_settings_cell_reaches_the_server(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family(name, tmp_path / "model")
    body = request_of(model, tmp_path, monkeypatch, **PROMPT)
    assert model.chat.decode(body["prompt"]) == EXPECTED[name]
    assert body["prompt"] == model.template(EXPECTED[name])
    assert [body[key] for key in ("temperature", "top_p", "min_p", "top_k")] == [0.5, 0.9, 0.0, 40]
