"""Makes the pocket model: problems, tokenizer and weights; measures its score.

    python scripts/train_pocket_model.py train --out data/pocket-model          # one GPU, minutes
    python scripts/train_pocket_model.py train --out data/pocket-draft --tokenizer-of data/pocket-model --hidden 128 --layers 2
    python scripts/train_pocket_model.py evaluate --model data/pocket-model
    python scripts/train_pocket_model.py problems --seed 7 --count 30 --out data/warmup.csv

The same seed gives the same data and tokenizer. Weights are reproducible only with the same hardware and libraries.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tokenizers import Tokenizer

from pocket_data import CHUNK, IGNORED, LENGTHS, Batches, train_tokenizer, training_rows
from pocket_evaluation import attempt_all, evaluation_problems
from pocket_problems import FAMILIES
from pocket_transcripts import STOP_TOKENS

if TYPE_CHECKING:
    import transformers  # imported where they are used, as torch is: both take seconds

TRAINING_SEED = 1
WARMUP_SEED = 2026
TOKENIZER_TRANSCRIPTS = 16_000
TEMPLATE = Path(__file__).with_name("pocket_chat_template.jinja")

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def problems(
    out: Annotated[Path, typer.Option(help="CSV to write: id, problem, answer")],
    seed: Annotated[int, typer.Option(help="any number; all problems are held out")] = WARMUP_SEED,
    count: Annotated[int, typer.Option(min=1)] = 30,
) -> None:
    """Writes problems that training never uses."""
    rows = [(f"pocket-{seed}-{i:03}", problem.text, problem.answer) for i, problem in enumerate(evaluation_problems(seed, count))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "problem", "answer"))
        writer.writerows(rows)
    typer.echo(f"{count} problems of {min(count, len(FAMILIES))} families in {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="model folder to write")],
    seed: Annotated[int, typer.Option()] = TRAINING_SEED,
    transcripts: Annotated[int, typer.Option(min=CHUNK, help="training transcripts")] = 800_000,
    steps: Annotated[int, typer.Option(min=1)] = 9_400,
    minutes: Annotated[float, typer.Option(help="end the schedule earlier if it would take longer than this")] = 60.0,
    tokens_per_step: Annotated[int, typer.Option(min=max(LENGTHS))] = 57_344,
    hidden: Annotated[int, typer.Option()] = 256,
    layers: Annotated[int, typer.Option()] = 6,
    learning_rate: Annotated[float, typer.Option()] = 2e-3,
    workers: Annotated[int, typer.Option()] = os.cpu_count() or 1,
    threads: Annotated[int | None, typer.Option(min=1, help="of torch on a CPU; default: its own choice")] = None,
    tokenizer_of: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="take this model's tokenizer, as a draft model has to")
    ] = None,
) -> None:
    """Makes transcripts from a seed, then trains tokenizer and model on them."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        if tokenizer_of is not None:
            tokenizer = Tokenizer.from_file(str(tokenizer_of / "tokenizer.json"))
        else:
            tokenizer = train_tokenizer(pool, seed, min(TOKENIZER_TRANSCRIPTS, transcripts))
        typer.echo(f"tokenizer: {tokenizer.get_vocab_size()} tokens after {time.monotonic() - start:.0f} s")
        rows = training_rows(pool, seed, transcripts, tokenizer)
    batches = Batches(rows, tokens_per_step, device, Random(f"batches {seed}"))
    typer.echo(f"data: {batches.describe()} after {time.monotonic() - start:.0f} s")

    model = transformers.LlamaForCausalLM(model_config(tokenizer, hidden, layers)).to(device)
    typer.echo(f"model: {model.num_parameters():,} parameters on {device}")
    fit(model, batches, steps, minutes * 60, learning_rate, lambda: write_folder(out, tokenizer, model))
    typer.echo(f"{out} written after {time.monotonic() - start:.0f} s")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="model folder")],
    seed: Annotated[int, typer.Option()] = 1_000_003,
    count: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token")] = 1.0,
    min_p: Annotated[float, typer.Option()] = 0.02,
    show: Annotated[int, typer.Option(help="wrong transcripts to print")] = 0,
) -> None:
    """Scores single attempts on held-out problems; every call is executed."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    start = time.monotonic()
    attempts = attempt_all(network, tokenizer, evaluation_problems(seed, count), temperature, min_p)
    right = sum(attempt.right for attempt in attempts)
    typer.echo(
        f"seed {seed}, temperature {temperature:g}: {right} of {count} right ({right / count:.1%}), "
        f"{sum(a.calls >= 1 for a in attempts) / count:.1%} with a call, {sum(a.calls >= 2 for a in attempts) / count:.1%} with "
        f"several, {sum(a.tokens for a in attempts) / count:.0f} sampled tokens each, {time.monotonic() - start:.0f} s"
    )
    for family in FAMILIES:
        own = [attempt for attempt in attempts if attempt.problem.family is family]
        typer.echo(f"  {family.name:20} {sum(a.right for a in own):4} of {len(own)}")
    for attempt in [a for a in attempts if not a.right][:show]:
        typer.echo(f"\n--- wrong; the answer is {attempt.problem.answer}\n{attempt.text}")


def model_config(tokenizer: Tokenizer, hidden: int, layers: int) -> transformers.LlamaConfig:
    import transformers

    return transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<bos>"),
        eos_token_id=[tokenizer.token_to_id(token) for token in STOP_TOKENS],
        pad_token_id=tokenizer.token_to_id("<pad>"),
    )


def fit(
    model: transformers.LlamaForCausalLM,
    batches: Batches,
    steps: int,
    seconds: float,
    learning_rate: float,
    save: Callable[[], None],
) -> None:
    """Trains with AdamW in bfloat16: warm-up over 2 %, then cosine decay; saves regularly and at the end."""
    import torch

    device = model.device
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")
    model.train()
    start = time.monotonic()
    progress, recent = 0.0, torch.zeros((), device=device)
    for step, (ids, targets) in enumerate(batches, 1):
        rate = learning_rate * min(1.0, progress / 0.02 + 1e-3) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent += loss.detach()
        progress = max(step / steps, (time.monotonic() - start) / seconds)
        if step % 200 == 0 or progress >= 1:
            # the only place that waits for the device
            mean = recent.item() / ((step - 1) % 200 + 1)
            typer.echo(f"step {step:6}  {progress:6.1%}  loss {mean:.4f}  rate {rate:.1e}  {time.monotonic() - start:.0f} s")
            recent.zero_()
        if step % 2000 == 0 or progress >= 1:
            save()
        if progress >= 1:
            return


def write_folder(out: Path, tokenizer: Tokenizer, model: transformers.LlamaForCausalLM) -> None:
    """Writes the model folder in the Hugging Face layout, weights in bfloat16."""
    import torch
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    stop_ids = [tokenizer.token_to_id(token) for token in STOP_TOKENS]
    config = model.config
    names = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "bos_token_id",
        "pad_token_id",
        "hidden_act",
    ]
    # written by hand, so that older releases of transformers, which know no `rope_parameters`, read it too
    _write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{name: getattr(config, name) for name in names},
            "attention_bias": False,
            "mlp_bias": False,
            "eos_token_id": stop_ids,
            "rope_theta": config.rope_parameters["rope_theta"],
            "torch_dtype": "bfloat16",
        },
    )
    _write_json(
        out / "generation_config.json",
        {"bos_token_id": config.bos_token_id, "eos_token_id": stop_ids, "pad_token_id": config.pad_token_id},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "bos_token": "<bos>",
            "eos_token": "<turn|>",
            "pad_token": "<pad>",
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE.read_text(encoding="utf-8"),
        },
    )
    weights = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied to the embedding
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
