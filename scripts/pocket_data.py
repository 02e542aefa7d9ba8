"""Makes the pocket model's training data: its tokenizer, and transcripts as padded rows of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from itertools import chain, islice
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pocket_problems import problems as draw_problems
from pocket_transcripts import SPECIAL_TOKENS, Segment, transcript

if TYPE_CHECKING:
    import torch  # imported where it is used, since it takes seconds

VOCABULARY = 1_280
CHUNK = 1_000  # transcripts that one worker makes at a time
LENGTHS = (160, 224, 320, 448, 768)  # rows are padded to the next of these; longer transcripts are left out
PAD, IGNORED = 0, -1

Rows = dict[int, np.ndarray]
"""Per padded length, int16 [rows, 2, length]: token ids and training targets."""


def training_transcripts(seed: int, chunk: int) -> Iterator[list[Segment]]:
    """Returns the transcripts of one chunk of the training data."""
    random = Random(f"transcripts {seed} {chunk}")
    for problem in islice(draw_problems(f"{seed}/{chunk}", for_training=True), CHUNK):
        yield transcript(problem, random)


def train_tokenizer(pool: Executor, seed: int, transcripts: int) -> Tokenizer:
    """Trains a byte-level BPE in which each digit is a token, so that numbers can be copied."""
    tokenizer = Tokenizer(models.BPE())
    words = r"'[a-z]+| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\n *|\s"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=10,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = chain.from_iterable(pool.map(partial(_chunk_texts, seed), _chunks(transcripts)))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def training_rows(pool: Executor, seed: int, transcripts: int, tokenizer: Tokenizer) -> Rows:
    """Returns all training transcripts as token ids."""
    made: dict[int, list[np.ndarray]] = {length: [] for length in LENGTHS}
    chunks = _chunks(transcripts)
    with typer.progressbar(length=len(chunks), label="transcripts") as bar:
        for rows in pool.map(partial(_chunk_rows, seed, tokenizer.to_str()), chunks):
            for length, part in rows.items():
                made[length].append(part)
            bar.update(1)
    return {length: np.concatenate(parts) for length, parts in made.items() if parts}


def _chunks(transcripts: int) -> range:
    return range(math.ceil(transcripts / CHUNK))


def _chunk_texts(seed: int, chunk: int) -> list[str]:
    texts = ["".join(segment.text for segment in segments) for segments in training_transcripts(seed, chunk)]
    # special tokens stay whole anyway; counted as text they would only waste merges
    for special in SPECIAL_TOKENS:
        texts = [text.replace(special, "\n") for text in texts]
    return texts


def _chunk_rows(seed: int, tokenizer_json: str, chunk: int) -> Rows:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    made: dict[int, list[np.ndarray]] = {}
    for segments in training_transcripts(seed, chunk):
        ids: list[int] = []
        targets: list[int] = []
        for segment in segments:
            part = tokenizer.encode(segment.text).ids
            ids += part
            targets += part if segment.by_model else [IGNORED] * len(part)
        length = next((length for length in LENGTHS if len(ids) <= length), None)
        if length:
            row = np.full((2, length), IGNORED, np.int16)
            row[0] = PAD
            row[:, : len(ids)] = ids, targets
            made.setdefault(length, []).append(row)
    return {length: np.stack(rows) for length, rows in made.items()}


class Batches:
    """Training rows on the device; iterates endlessly over (ids, targets), int64 [rows, length], in random order."""

    def __init__(self, rows: Rows, tokens_per_step: int, device: str, random: Random) -> None:
        import torch

        self._rows = {length: torch.from_numpy(part).to(device) for length, part in rows.items()}
        self._tokens_per_step = tokens_per_step
        self._random = random

    def describe(self) -> str:
        learnt = sum(int((rows[:, 1] != IGNORED).sum()) for rows in self._rows.values())
        shares = ", ".join(f"{len(rows):,} of up to {length}" for length, rows in self._rows.items())
        return f"{shares} tokens; {learnt:,} tokens to learn"

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        while True:
            plan = []
            for length, rows in self._rows.items():
                order = torch.tensor(self._random.sample(range(len(rows)), len(rows)), device=rows.device)
                plan += [(length, part) for part in order.split(self._tokens_per_step // length)]
            self._random.shuffle(plan)
            for length, part in plan:
                batch = self._rows[length][part].long()
                yield batch[:, 0], batch[:, 1]
