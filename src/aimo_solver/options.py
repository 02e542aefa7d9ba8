"""The options of a run, in sections. Units are in the names; unknown names and impossible values are errors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")

MOST_KERNELS = 128
"""Of one pool, spares included; `kernels.limits` keeps as many user ids again for kernels that are ending."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Variant = Literal[
    "tool", "bare", "reasoning", "tool-suffix", "reasoning-suffix", "code-first", "tool-zh", "reasoning-zh", "tool-ru"
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How tokens are drawn. 1.0 and 0.02 are what the strongest public runs of gpt-oss-120b used.

    Attributes:
        min_p: tokens less likely than this share of the likeliest one are never drawn.
        top_logprobs: candidates per token from which entropy is measured; 0 takes -log p of the drawn token instead,
            which has the same mean and costs half as much (docs/benchmarks.md), but another median: voters that look
            at the tail (`tail-entropy`, `vote-share`, `lexicographic`) want 5.
        seed: of the local server; None draws a new one each run. The same seed gives the same answers only as far as
            the same requests meet in the same batches.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Share = 1.0
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.02
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttemptConfig:
    """Limits of one attempt.

    Attributes:
        max_turns: model turns, the tool calls between them included.
        max_tokens: sampled tokens over all turns; None means as many as the context holds.
        answer_tokens, answer_s: what is kept back to ask for the answer near a limit.
    """

    max_turns: Count = 128
    max_tokens: Count | None = None
    answer_tokens: Count = 512
    answer_s: NonNegative = 15.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SolverConfig:
    """How many attempts a problem gets.

    Attributes:
        slots: attempts that run side by side.
        max_attempts: attempts in all; more than `slots` means that a slot that frees up takes the next attempt while
            the problem is undecided.
        parallel: problems that are solved side by side; Kaggle's gateway brings one at a time.
    """

    slots: Count = 8
    max_attempts: Count = 8
    parallel: Count = 1

    @property
    def streams(self) -> int:
        """Attempts side by side over all problems: what the server and the kernels are made for."""
        return self.slots * self.parallel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KernelConfig:
    """The Python sessions of the model's code.

    Attributes:
        size: sessions side by side at most; None means one for each attempt that runs.
        spares: kernels kept warm beyond that.
        timeout_s: a call's limit; 12 s instead of 6 s brought nothing in public runs.
        output_chars: longest output the model sees; more is cut in the middle with a note. It is tokenised on the event loop,
            20 to 180 ms for 100,000 characters, hence the limit.
        memory_mb: address space a kernel may grow by.
        pool_memory_mb: what all kernels together may hold; None means half of the machine's memory.
        preload: modules imported before kernels are forked, besides numpy, sympy, mpmath; missing ones are passed over.
    """

    size: Count | None = None
    spares: Annotated[int, Field(ge=0)] = 4
    timeout_s: Positive = 6.0
    output_chars: Annotated[int, Field(ge=1, le=50_000)] = 8_000
    memory_mb: Count = 4_096
    pool_memory_mb: Count | None = None
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VotingConfig:
    """How an answer is chosen, and when enough is known.

    Attributes:
        voter: the rule that ranks answers; voting.py explains them.
        error_penalty: `error-weighted` counts a vote as 1 / (1 + error_penalty * tool_errors).
        proximity: `proximity` puts answers into one cluster that differ by at most this part of the larger one.
        refine: how `proximity` picks the answer of a cluster.
        stop: the rule that ends a problem early; stopping.py explains them and the five options that follow.
        equal: votes for one answer, for `equal`.
        margin: votes more than any other answer has, for `margin`.
        share: part of all scores, once there are `share_after` answers, for `share`.
        consistency: pairs (k, n), k equal of the first n answers, for `consistency`.
        confidence: for `posterior`.
        no_answers: attempts without an answer that end a problem under any rule; None never does.
    """

    voter: Literal["majority", "error-weighted", "entropy", "tail-entropy", "vote-share", "lexicographic", "proximity"] = (
        "error-weighted"
    )
    error_penalty: NonNegative = 0.1
    proximity: Annotated[float, Field(ge=0, lt=1)] = 0.05
    refine: Literal["median", "trimmed-mean"] = "median"
    stop: Literal["equal", "uncatchable", "margin", "share", "first", "consistency", "posterior", "never"] = "equal"
    equal: Count = 4
    margin: Count = 3
    share: Share = 0.7
    share_after: Count = 4
    consistency: tuple[tuple[Count, Count], ...] = ((3, 3), (4, 5), (5, 7))
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    no_answers: Count | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectionConfig:
    """A second look at problems whose vote has no clear winner; selection.py explains the two ways.

    Attributes:
        select, verify: "off", "log" (asked and logged, the vote decides) or "use" (a clear choice decides).
        clear_share: from this part of all scores on, the vote's leader is clear.
        candidates: how many are shown.
        asks: attempts per way, half of them in reversed order.
        summary_chars: longest summary of a candidate.
        least_s: no second look with less time left.
    """

    select: Literal["off", "log", "use"] = "off"
    verify: Literal["off", "log", "use"] = "off"
    clear_share: Share = 0.6
    candidates: Annotated[int, Field(ge=2)] = 3
    asks: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    summary_chars: Annotated[int, Field(ge=100)] = 1_500
    least_s: NonNegative = 60.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetConfig:
    """How the clock is spent.

    Attributes:
        rule: how a problem's seconds follow from what is left; budget.py explains them.
        time_limit_s: from process start to the end of everything; 5 h on Kaggle.
        margin_s: part of time_limit_s that is never given to a problem.
        reserve_s: kept back for each later problem.
        cap_s: most seconds for one problem.
        least_s: a problem gets at least that, or all that is left, so that when time is short some problems can be won
            instead of none; budget.py gives the reason for 10.
        saturation_s: seconds after which a problem's chance has reached 63 % of what it can become, for `marginal`.
        problems: how many problems are expected when nobody says.
    """

    rule: Literal["greedy", "clamp", "even", "tiers", "marginal"] = "greedy"
    time_limit_s: Positive = 18_000.0
    margin_s: NonNegative = 300.0
    reserve_s: NonNegative = 300.0
    cap_s: Positive = 900.0
    least_s: NonNegative = 10.0
    saturation_s: Positive = 110.0
    problems: Count = 50


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptConfig:
    """What the model is told.

    Attributes:
        family: chat format by name; "auto" reads it off the model.
        mix: prompt variants in turn over the attempts, by the names in prompts.py; a name may stand several times.
        reasoning_effort: for models that are told one (gpt-oss).
    """

    family: Literal["auto", "harmony", "gemma", "hermes", "fenced"] = "auto"
    mix: Annotated[tuple[Variant, ...], Field(min_length=1)] = ("tool",)
    reasoning_effort: Literal["low", "medium", "high"] = "high"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerConfig:
    """The local vLLM server. None leaves an option to the preset.

    Attributes:
        preset: flags by name (`server.launch`); "auto" chooses by the model and the machine.
        context_tokens: longest prompt and answer together.
        memory_share: part of the GPU's memory that vLLM takes.
        kv_cache_dtype, attention_backend, moe_backend, quantization, load_format: by vLLM's names.
        tensor_parallel, data_parallel: GPUs that share one copy of the model, and copies.
        speculative: how tokens are drafted; "eagle" and "draft" need `draft_model`.
        speculative_tokens: tokens drafted per step.
        jit_cache: a packed compile cache (`aimo-solver cache pack`) that is put in place before the start.
        start_timeout_s: longest wait for the server to become ready.
        stall_s: seconds without a token while requests run after which the server counts as hung.
        restarts: how often a server that failed is started again; given back after every problem that ended well.
        extra_args: appended to the command line as they are.
    """

    preset: Literal["auto", "gpt-oss-120b", "gemma-4-31b", "qwen3", "generic", "cpu"] = "auto"
    context_tokens: Count | None = None
    memory_share: Share | None = None
    kv_cache_dtype: str | None = None
    attention_backend: str | None = None
    moe_backend: str | None = None
    quantization: str | None = None
    load_format: str | None = None
    tensor_parallel: Count | None = None
    data_parallel: Count = 1
    speculative: Literal["none", "ngram", "eagle", "draft"] = "none"
    draft_model: str | None = None
    speculative_tokens: Count = 3
    jit_cache: str | None = None
    start_timeout_s: Positive = 900.0
    stall_s: Positive = 60.0
    restarts: Annotated[int, Field(ge=0)] = 3
    extra_args: tuple[str, ...] = ()
