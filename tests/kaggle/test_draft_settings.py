"""The draft in the notebook's settings: used where it fits, and left out with a reason where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aimo_solver.errors import ConfigError
from aimo_solver.kaggle.notebook import NotebookSessions, notebook_run
from aimo_solver.server.wheels import NOTHING_TO_INSTALL
from tests.conftest import H100, ROOT


def model(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    return folder


def sessions(target: Path, draft: str, temperature: float = 0.0) -> NotebookSessions:
    settings = {"sampling": {"temperature": temperature}, "server": {"draft_model": draft}}
    return NotebookSessions(str(target), settings, NOTHING_TO_INSTALL, target.parent / "runs", 0.0)


def test_a_draft_that_fits_is_taken(tmp_path: Path) -> None:
    target, draft = model(tmp_path / "model", vocab_size=1_000), model(tmp_path / "draft", vocab_size=1_000)
    made = sessions(target, str(draft))
    server = made._config(target).server
    assert (server.draft_model, server.speculative) == (str(draft), "auto")
    assert made._draft_problem is None


@pytest.mark.parametrize("vocabulary", [None, 999])
def test_the_run_goes_on_without_a_draft_that_cannot_be_used(tmp_path: Path, vocabulary: int | None) -> None:
    target, draft = model(tmp_path / "model", vocab_size=1_000), tmp_path / "draft"
    if vocabulary is not None:
        model(draft, vocab_size=vocabulary)
    made = sessions(target, str(draft))
    assert made._config(target).server.speculative == "none"
    assert made._draft_problem is not None
    assert "\n" not in made._draft_problem
    assert str(draft) in made._draft_problem
    assert vocabulary is None or ("999" in made._draft_problem and "1000" in made._draft_problem)


def test_a_draft_that_is_mounted_late_is_taken_by_the_next_session(tmp_path: Path) -> None:
    target = model(tmp_path / "model", vocab_size=1_000)
    made = sessions(target, str(tmp_path / "draft"))
    assert made._config(target).server.speculative == "none"
    model(tmp_path / "draft", vocab_size=1_000)
    assert made._config(target).server.speculative == "auto"
    assert made._draft_problem is None


def test_a_cpu_draws_without_a_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU build draws wrongly under speculation, and a run at temperature 0 or on a GPU does not mind."""
    target, draft = model(tmp_path / "model", vocab_size=1_000), model(tmp_path / "draft", vocab_size=1_000)
    made = sessions(target, str(draft), temperature=1.0)
    assert made._config(target).server.speculative == "none"
    assert "temperature=0" in (made._draft_problem or "")
    monkeypatch.setattr("aimo_solver.kaggle.notebook.detect_gpus", lambda: (H100,))
    assert made._config(target).server.speculative == "auto"


def test_options_that_contradict_a_draft_are_refused_in_the_cell(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.draft_model"):
        notebook_run("m", {"server": {"speculative": "ngram"}}, NOTHING_TO_INSTALL, tmp_path, draft="head")


def test_the_settings_cell_names_a_draft() -> None:
    template = (ROOT / "notebook" / "template.md").read_text()
    cell: dict[str, object] = {}
    exec(template.partition("```python settings\n")[2].partition("```")[0], cell)
    assert cell["DRAFT"] == ""
    assert "notebook_run(MODEL, SETTINGS, wheels, draft=DRAFT, " in template
