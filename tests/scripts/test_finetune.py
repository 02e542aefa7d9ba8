"""Fine-tuning on exported runs: what the loss covers, and that an interrupted training continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

from tests.conftest import MODEL, ROOT

pytestmark = pytest.mark.slow

MASK = [0] * 5 + [1] * 20 + [0] * 5 + [1] * 10


def write_rows(path: Path, count: int) -> list[list[int]]:
    random = Random(1)
    rows = [[random.randrange(20, 1_000) for _ in MASK] for _ in range(count)]
    types = {"input_ids": pl.List(pl.Int32), "assistant_masks": pl.List(pl.Int8)}
    pl.DataFrame({"input_ids": rows, "assistant_masks": [MASK] * count}, schema=types).write_parquet(path)
    return rows


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "scripts" / "finetune.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*map(str, command)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_an_interrupted_training_continues_and_writes_a_whole_model(tmp_path: Path) -> None:
    data, out = tmp_path / "sft.parquet", tmp_path / "new"
    rows = write_rows(data, 40)
    command = ("sft", "--model", MODEL, "--data", data, "--out", out, "--batch", 1, "--rows", 1, "--learning-rate", 1e-3)
    first = start(*command)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("new.checkpoints/checkpoint-*/trainer_state.json")) and time.monotonic() < end:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert not out.exists()
    second = start(*command)
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0, output
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in log if "loss" in line] == list(range(1, len(rows) + 1))
    assert "continues from checkpoint-" in output
    for name in ("tokenizer.json", "aimo.toml", "model.safetensors"):
        assert (out / name).exists(), name
    assert not list(tmp_path.glob("new.*"))


def test_the_loss_of_sft_covers_the_sampled_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from trl import SFTConfig, SFTTrainer

    import finetune

    rows = write_rows(tmp_path / "sft.parquet", 2)
    trainer: Any = SFTTrainer(
        model=finetune._load(MODEL),
        args=SFTConfig(**finetune._arguments(tmp_path / "new", 1.0, 1e-5, 2, 2, 0), max_length=None),
        **finetune._datasets(tmp_path / "sft.parquet", ("input_ids", "assistant_masks")),
        processing_class=finetune._tokenizer(MODEL),
    )
    labels = [row["labels"] for row in trainer.train_dataset]
    assert labels == [[token if kept else -100 for token, kept in zip(row, MASK, strict=True)] for row in rows]


def test_the_loss_of_dpo_covers_the_sampled_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import finetune

    _, collator_class = finetune.dpo_classes()
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "chosen_mask": [1, 0, 1], "rejected_ids": [6], "rejected_mask": [1]}
    batch = collator_class(pad_token_id=0)([pair])
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 0]]
    cut = collator_class(pad_token_id=0, max_length=4)([pair])
    assert cut["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]
