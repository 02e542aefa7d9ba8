"""Fine-tunes a model on its own runs, with TRL and PEFT: SFT, DPO, and rounds of rejection sampling.

    python scripts/finetune.py sft --model MODEL --data sft.parquet --out NEW          # data of aimo-solver export sft
    python scripts/finetune.py dpo --model MODEL --data dpo.parquet --out NEW          # data of aimo-solver export dpo
    python scripts/finetune.py rounds --model MODEL --problems train.csv --out DIR --rounds 2

Runs on one GPU or on the CPU; ``--lora`` trains an adapter that is merged into the weights at the end. After Ctrl-C, the
same command continues from the last checkpoint. The new folder holds the model in bfloat16, ready for vLLM, and
``training_log.jsonl``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from solver_runs import run_command, run_solver, sample

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and data are local files

_WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")
_LORA_ALPHA = 2  # times the rank

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Model = Annotated[Path, typer.Option(exists=True, file_okay=False, help="model folder, with its tokenizer")]
Data = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="parquet file; a .test.parquet beside it is evaluated")]
Out = Annotated[Path, typer.Option(help="folder of the new model")]
Lora = Annotated[int, typer.Option(min=0, help="rank of the adapter; 0 trains all weights")]
Epochs = Annotated[float, typer.Option(min=0.01)]
LearningRate = Annotated[float | None, typer.Option(help="default: 1e-4 with an adapter, else 1e-5; 5e-6 and 5e-7 for DPO")]
Batch = Annotated[int, typer.Option(min=1, help="rows per step of the optimiser")]
Rows = Annotated[int, typer.Option(min=1, help="rows at once on the device; the rest is accumulated")]
MaxTokens = Annotated[int | None, typer.Option(min=2, help="longer rows are cut at the end; default: none")]
Seed = Annotated[int, typer.Option()]


@app.command()
def sft(
    model: Model,
    data: Data,
    out: Out,
    lora: Lora = 0,
    epochs: Epochs = 1.0,
    learning_rate: LearningRate = None,
    batch: Batch = 32,
    rows: Rows = 8,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
) -> None:
    """Trains on the sampled tokens of right attempts."""
    if _is_complete(out):
        return
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **_arguments(out, epochs, learning_rate or (1e-4 if lora else 1e-5), batch, rows, seed), max_length=max_tokens
    )
    trainer = SFTTrainer(
        model=_load(model),
        args=arguments,
        **_datasets(data, ("input_ids", "assistant_masks")),
        processing_class=_tokenizer(model),
        peft_config=_adapter(lora),
    )
    _train(trainer, model, out)


@app.command()
def dpo(
    model: Model,
    data: Data,
    out: Out,
    beta: Annotated[float, typer.Option(min=0.0, help="how strongly the model is kept close to its starting point")] = 0.1,
    lora: Lora = 0,
    epochs: Epochs = 1.0,
    learning_rate: LearningRate = None,
    batch: Batch = 32,
    rows: Rows = 4,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
) -> None:
    """Trains on pairs of attempts; tokens that were not sampled have no part in the loss."""
    if _is_complete(out):
        return
    from trl import DPOConfig

    arguments = DPOConfig(
        **_arguments(out, epochs, learning_rate or (5e-6 if lora else 5e-7), batch, rows, seed),
        beta=beta,
        max_length=max_tokens,
        remove_unused_columns=False,  # TRL does not list the masks
    )
    tokenizer = _tokenizer(model)
    trainer_class, collator_class = dpo_classes()
    trainer = trainer_class(
        model=_load(model),
        args=arguments,
        data_collator=collator_class(pad_token_id=tokenizer.pad_token_id, max_length=max_tokens),
        **_datasets(data, ("prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask")),
        processing_class=tokenizer,
        peft_config=_adapter(lora),
    )
    _train(trainer, model, out)


@app.command()
def rounds(
    model: Model,
    problems: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV with id, problem and answer")],
    out: Out,
    count: Annotated[int, typer.Option("--rounds", min=1)] = 2,
    attempts: Annotated[int, typer.Option(min=2, help="per problem and round")] = 8,
    per_problem: Annotated[int, typer.Option(min=1, help="most right attempts per problem, over all rounds")] = 4,
    parallel: Annotated[int, typer.Option(min=1, max=15, help="problems at the same time")] = 4,
    settings: Annotated[list[str] | None, typer.Option("--set", help="option of the solver, section.option=value")] = None,
    keep_solved: Annotated[bool, typer.Option("--keep-solved", help="also problems that every attempt solved")] = False,
    lora: Lora = 0,
    epochs: Epochs = 1.0,
    learning_rate: LearningRate = None,
    batch: Batch = 32,
    rows: Rows = 8,
    seed: Seed = 0,
) -> None:
    """Rejection sampling: sample with the solver, keep right attempts, train, and repeat with the new model.

    Each round trains the model that `--model` names on the attempts of all rounds so far, so that nothing is unlearned. The
    model of round K is OUT/K/model.
    """
    sampled: list[Path] = []
    current = model
    for number in range(1, count + 1):
        folder = out / str(number)
        sample(current, problems, folder / "run", attempts, parallel, seed + number, settings or ())
        sampled.append(folder / "run")
        data = folder / "sft.parquet"
        if not data.exists():
            kept = ["--per-problem", per_problem, *(["--keep-solved"] if keep_solved else [])]
            run_solver("export", "sft", *sampled, "--out", data, *kept, "--held-out", 0, "--seed", seed)
        options: list[object] = ["--model", model, "--data", data, "--out", folder / "model", "--lora", lora, "--epochs", epochs]
        options += ["--batch", batch, "--rows", rows, "--seed", seed]
        options += [] if learning_rate is None else ["--learning-rate", learning_rate]
        # In a separate process, so that its device memory is free for the next round's server.
        run_command([sys.executable, __file__, "sft", *options])
        current = folder / "model"


def dpo_classes() -> tuple[type, type]:
    """Returns TRL's trainer and collator for DPO, changed to take token ids and loss masks as exported."""
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class TokenTrainer(DPOTrainer):  # type: ignore[misc] # trl has no types
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # it would render and tokenise texts

    class MaskedCollator(DataCollatorForPreference):  # type: ignore[misc]
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            import torch

            batch: dict[str, Any] = super().torch_call(examples)
            masks = [example[f"{name}_mask"] for name in ("chosen", "rejected") for example in examples]
            prompts = [len(example["prompt_ids"]) for example in examples] * 2
            for row, (start, mask) in enumerate(zip(prompts, masks, strict=True)):
                end = min(start + len(mask), batch["completion_mask"].shape[1])
                batch["completion_mask"][row, start:end] *= torch.tensor(mask[: max(0, end - start)])
            return batch

    return TokenTrainer, MaskedCollator


def _arguments(out: Path, epochs: float, learning_rate: float, batch: int, rows: int, seed: int) -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    rows = min(rows, batch)
    if batch % rows:
        raise typer.BadParameter(f"--batch {batch} is not a multiple of --rows {rows}")
    return {
        "output_dir": str(_checkpoints(out)),
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": batch // rows,
        "gradient_checkpointing": on_gpu,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 1,
        "report_to": "none",
        "seed": seed,
    }


def _train(trainer: Any, model: Path, out: Path) -> None:
    """Trains, from the last checkpoint if there is one, and writes the new model's folder in one step."""
    import torch

    checkpoints = _checkpoints(out)
    # The state is written last, so a checkpoint that an interruption cut short has none.
    whole = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if last is not None:
        typer.echo(f"continues from {last.name}")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    network = trainer.model.merge_and_unload() if hasattr(trainer.model, "merge_and_unload") else trainer.model
    network.to(torch.bfloat16).save_pretrained(part)
    for file in model.iterdir():  # tokenizer, chat template, options; weights and what was just written stay
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not (part / file.name).exists():
            shutil.copy(file, part)
    with (part / "training_log.jsonl").open("w", encoding="utf-8") as log:
        log.writelines(json.dumps(line) + "\n" for line in trainer.state.log_history)
    part.rename(out)
    shutil.rmtree(checkpoints)
    typer.echo(f"{out}: {trainer.state.global_step} steps, loss {_losses(trainer.state.log_history)}")


def _losses(history: Sequence[dict[str, Any]]) -> str:
    losses = [line["loss"] for line in history if "loss" in line]
    held_out = [f", held out {line['eval_loss']:.4f}" for line in history if "eval_loss" in line][-1:]
    return (f"{losses[0]:.4f} -> {losses[-1]:.4f}" if losses else "unknown") + "".join(held_out)


def _checkpoints(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoints")


def _is_complete(out: Path) -> bool:
    if out.exists():
        typer.echo(f"{out} exists already; nothing to train")
    return out.exists()


def _load(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # The optimiser's steps are smaller than bfloat16 can hold.
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _adapter(rank: int) -> Any:
    if rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=_LORA_ALPHA * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _datasets(data: Path, columns: Sequence[str]) -> dict[str, Any]:
    from datasets import Dataset

    def read(path: Path) -> Any:
        try:
            return Dataset.from_parquet(str(path), columns=list(columns), keep_in_memory=True)
        except (KeyError, ValueError) as error:
            raise typer.BadParameter(f"{path} lacks the columns {', '.join(columns)}: {error}") from None

    test = data.with_suffix(".test.parquet")
    return {"train_dataset": read(data), "eval_dataset": read(test) if test.exists() else None}


if __name__ == "__main__":
    app()
