"""Lengths of turns and tool results: as in logged attempts of gpt-oss-120b, or all equal."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from aimo_solver.errors import ConfigError

_CALL, _END = 200_012, 200_007  # o200k_harmony's <|call|> and <|end|>
_OPENING = 2  # <|start|>assistant, after a tool result
_DRAWN = 10_000
# Logged attempts of gpt-oss-120b (550): turns have a median of 320 tokens and a mean of 1,298; tool results have a
# median of 19, and 99 % are below 503. Log-normal distributions with these values.
_TURN = (math.log(320), math.sqrt(2 * math.log(1_298 / 320)))
_RESULT = (math.log(19), math.log(503 / 19) / 2.326)


@dataclass(frozen=True, slots=True)
class TurnLength:
    """One turn.

    Attributes:
        sampled: tokens until it ends.
        result: tokens of the tool result after it.
    """

    sampled: int
    result: int


Turns = Sequence[TurnLength]
"""One conversation's turns; the last one has no result."""


def even_turns(tokens: int, turn_tokens: int, result_tokens: int) -> Turns:
    """Returns turns of equal length that have `tokens` tokens in all, or fewer if they do not divide."""
    return (TurnLength(turn_tokens, result_tokens),) * max(1, tokens // turn_tokens)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Logged turns with their results, to draw from. `source` says where they are from."""

    turns: tuple[TurnLength, ...]
    source: str

    @classmethod
    def read(cls, attempts: Path | None) -> Self:
        """Reads `attempts.npz` (`tokens`, and `ends` of each attempt); without it draws from the quantiles of logged attempts.

        Raises:
            ConfigError: the file cannot be read.
        """
        if attempts is None:
            draw = np.random.default_rng(0)
            sampled, results = draw.lognormal(*_TURN, _DRAWN), draw.lognormal(*_RESULT, _DRAWN)
            pairs = zip(sampled.astype(int) + 1, results.astype(int) + 1, strict=True)
            return cls(tuple(TurnLength(int(turn), int(result)) for turn, result in pairs), "quantiles of logged attempts")
        try:
            with np.load(attempts) as arrays:
                tokens, ends = arrays["tokens"], arrays["ends"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError("--attempts", f"{attempts} cannot be read: {error}") from None
        turns = []
        start = 0
        for end in ends:
            turns += _turns(tokens[start:end])
            start = end
        if not turns:
            raise ConfigError("--attempts", f"{attempts} has no tool call")
        return cls(tuple(turns), f"{len(turns):,} turns of {len(ends)} logged attempts")

    def draw(self, tokens: int, seed: int) -> Turns:
        """Draws turns until they have `tokens` tokens in all; the last is cut to fit."""
        draw = np.random.default_rng(seed)
        drawn: list[TurnLength] = []
        left = tokens
        while left > 0:
            turn = self.turns[int(draw.integers(len(self.turns)))]
            drawn.append(TurnLength(min(turn.sampled, left), turn.result))
            left -= turn.sampled
        return drawn


def _turns(attempt: np.ndarray) -> list[TurnLength]:
    """The turns of one attempt that ended in a call, with what was inserted after each."""
    found = []
    start = 0
    ends = np.flatnonzero(attempt == _END)
    for call in np.flatnonzero(attempt == _CALL):
        later = ends[ends > call]
        if not len(later):
            break
        resumed = int(later[0]) + 1 + _OPENING
        found.append(TurnLength(int(call) + 1 - start, resumed - int(call) - 1))
        start = resumed
    return found
