"""Types of options, and the options that several packages share; each package has its own in its module `options`.

Names end with units; unknown names and invalid values are errors.
"""

from __future__ import annotations

import builtins
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
MinP = Annotated[float, Field(ge=0, lt=1)]
TopK = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How tokens are sampled. The best public runs of gpt-oss-120b used temperature 1.0 and min_p 0.02.

    Attributes:
        min_p: tokens less likely than this share of the most likely one are never sampled.
        top_k: only this many of the most likely tokens are sampled; 0 means all.
        top_logprobs: candidates per token used to estimate entropy; 0 uses -log p of the sampled token, which has the same
            mean at half the cost (docs/benchmarks.md) but a different median: use 5 with voters that look at the tail
            (`tail-entropy`, `vote-share`, `lexicographic`).
        seed: of the local server; None means a new one for each run. The same seed gives the same answers only if the same
            requests are batched together.
    """

    temperature: Temperature = 1.0
    top_p: Share = 1.0
    min_p: MinP = 0.02
    top_k: TopK = 0
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AnswersConfig:
    """What an answer is.

    Attributes:
        kind: "integer" or "symbolic": any LaTeX value, compared by math-verify; only for `aimo-solver evaluate`.
        range: smallest and largest integer that counts as an answer.
        modulus: the answer is the remainder of the stated integer, which is computed here and not by the model; None means the
            integer itself is the answer.
    """

    kind: Literal["integer", "symbolic"] = "integer"
    range: tuple[int, int] = (0, 99_999)
    modulus: Count | None = None

    @property
    def possible(self) -> builtins.range:
        """The integers that count as answers."""
        return builtins.range(self.range[0], self.range[1] + 1)
