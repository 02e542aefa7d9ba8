"""The options of a run, in sections. Names end with units; unknown names and invalid values are errors."""

from __future__ import annotations

import builtins
from collections import Counter
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")

MOST_KERNELS = 128
"""In one pool, including spares; `kernels.limits` reserves as many user ids again for kernels that are ending."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
FamilyName = Literal["harmony", "gemma", "hermes", "fenced"]
ReasoningEffort = Literal["low", "medium", "high"]
BuiltInVariant = Literal[
    "tool", "tool-developer", "bare", "reasoning", "tool-suffix", "reasoning-suffix", "code-first", "tool-zh", "reasoning-zh",
    "tool-ru",
]  # fmt: skip
Temperature = Annotated[float, Field(ge=0, le=2)]
MinP = Annotated[float, Field(ge=0, lt=1)]
TopK = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How tokens are sampled. The best public runs of gpt-oss-120b used temperature 1.0 and min_p 0.02.

    Attributes:
        min_p: tokens less likely than this share of the most likely one are never sampled.
        top_k: only so many of the most likely tokens are sampled; 0 means all.
        top_logprobs: candidates per token used to estimate entropy; 0 uses -log p of the sampled token, which has the same
            mean at half the cost (docs/benchmarks.md) but another median: use 5 with voters that look at the tail
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
class AttemptConfig:
    """Limits of one attempt.

    Attributes:
        max_turns: model turns, with tool calls between them.
        max_tokens: sampled tokens over all turns; None means as many as the context holds.
        answer_tokens, answer_s: tokens and seconds reserved for asking for the answer near a limit.
        time_limit_s: seconds of an attempt at most; None means as many as its problem has.
        stop_loops: an attempt that repeats itself (policy/loops.py) is told so, and the second time asked for its answer.
        stop_at_box: the first closed box with an answer ends the attempt, also within its thinking or code.
        least_thinking: an answer within the first so many sampled tokens is questioned once ("Wait"); 0 never does.
    """

    max_turns: Count = 128
    max_tokens: Count | None = None
    answer_tokens: Count = 512
    answer_s: NonNegative = 15.0
    time_limit_s: Positive | None = None
    stop_loops: bool = False
    stop_at_box: bool = False
    least_thinking: Annotated[int, Field(ge=0)] = 0


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


@dataclass(frozen=True)
class Plan:
    """Attempts of one problem: side by side, in total, and equal answers that end it under the stop rule `equal`."""

    slots: int
    max_attempts: int
    equal: int


LARGER_PLANS = (Plan(12, 12, 5), Plan(16, 16, 8))
"""With `solver.grow`: what the simulation supports where there is time (docs/policies.md)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SolverConfig:
    """How many attempts a problem gets.

    Attributes:
        slots: attempts that run side by side.
        max_attempts: attempts in total; if more than `slots`, a slot that becomes free takes the next attempt while the
            problem is undecided.
        parallel: problems solved side by side; Kaggle's gateway asks one at a time.
        grow: a problem gets 12 or 16 attempts side by side where the time left and the speed measured so far allow it
            (policy/pace.py). The server and the kernels are then prepared for 16.
    """

    slots: Count = 8
    max_attempts: Count = 8
    parallel: Count = 1
    grow: bool = False

    @property
    def most_slots(self) -> int:
        """Attempts side by side at one problem at most."""
        return LARGER_PLANS[-1].slots if self.grow else self.slots

    @property
    def streams(self) -> int:
        """Attempts side by side over all problems at most; the server and the kernel pool are sized for it."""
        return self.most_slots * self.parallel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KernelConfig:
    """The Python sessions of the model's code.

    Attributes:
        size: sessions side by side at most; None means one for each running attempt.
        spares: additional kernels kept warm.
        timeout_s: limit of a call; 12 s instead of 6 s gained nothing in public runs.
        output_chars: longest output shown to the model; longer output is cut in the middle with a note. The upper bound exists
            because output is tokenised on the event loop: 20 to 180 ms for 100,000 characters.
        memory_mb: growth of a kernel's address space at most.
        pool_memory_mb: memory of all kernels together at most; None means half of the machine's memory.
        preload: modules imported before kernels are forked, besides numpy, sympy and mpmath; missing ones are skipped.
    """

    size: Count | None = None
    spares: Annotated[int, Field(ge=0)] = 4
    timeout_s: Positive = 6.0
    output_chars: Annotated[int, Field(ge=1, le=50_000)] = 4_000
    memory_mb: Count = 4_096
    pool_memory_mb: Count | None = None
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VotingConfig:
    """How an answer is chosen, and when a problem ends early.

    Attributes:
        voter: the rule that ranks answers, see policy/voting.py.
        forced_weight: weight of an answer that had to be asked for, relative to one that an attempt gave by itself.
        error_penalty: `error-weighted` counts a vote as 1 / (1 + error_penalty * tool_errors).
        proximity: `proximity` clusters answers that differ by at most this share of the larger one.
        refine: how `proximity` chooses the answer of a cluster.
        stop: the rule that ends a problem early, see policy/stopping.py.
        equal: for `equal`, votes for one answer.
        margin: for `margin`, lead in votes over every other answer.
        share: for `share`, share of all scores once there are `share_after` answers.
        consistency: for `consistency`, pairs (k, n): k equal answers among the first n.
        confidence: for `posterior`, probability that the leader is the likelier of the first two answers.
        no_answers: attempts without an answer that end a problem under any rule; None means no limit.
    """

    voter: Literal["majority", "error-weighted", "entropy", "tail-entropy", "vote-share", "lexicographic", "proximity"] = (
        "error-weighted"
    )
    forced_weight: Annotated[float, Field(gt=0, le=10)] = 1.0
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
    """A second look at problems whose vote has no clear winner, see policy/selection.py.

    Attributes:
        select, verify: "off", "log" (asked and logged, but the vote decides) or "use" (a clear choice decides).
        clear_share: the vote is clear if its leader has at least this share of all scores.
        candidates: how many are shown.
        asks: attempts per method, half of them with the candidates in reversed order.
        summary_chars: longest summary of a candidate.
        least_s: there is no second look with less time left.
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
    """How time is allotted to problems.

    Attributes:
        rule: how a problem's seconds follow from the time left, see policy/budget.py.
        time_limit_s: from process start to the end of everything; 5 h on Kaggle.
        margin_s: part of time_limit_s that no problem gets.
        reserve_s: reserved for each later problem.
        cap_s: most seconds for one problem.
        least_s: a problem gets at least this, or all the time left, so that some problems are solved instead of none when time
            is short; policy/budget.py gives the reason for 10.
        saturation_s: for `marginal`, seconds after which a problem's chance has reached 63 % of its maximum.
        problems: expected number of problems where it is not known.
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
class VariantConfig:
    """A prompt variant. Fields that are None are taken from `base`, sampling and effort from their own sections.

    In the texts, {timeout_s}, {output_chars} and {libraries} stand for the limits of a call and for the modules that are
    imported, and {answer} for what an answer is, such as "an integer from 0 to 99999". `aimo-solver prompts` shows what a
    model gets.

    Attributes:
        base: a variant of the library (chat/variants.py); by default the one of the same name, or else "tool".
        identity: opens the system message. In the family fenced, it goes before the problem instead.
        system: the rest of the system message.
        developer: the developer message of gpt-oss; other families treat it like `identity`.
        suffix: follows the problem in the user message.
        tool: the Python tool is declared. tool_description: what is said about it.
    """

    base: BuiltInVariant | None = None
    identity: str | None = None
    system: str | None = None
    developer: str | None = None
    suffix: str | None = None
    tool: bool | None = None
    tool_description: str | None = None
    reasoning_effort: ReasoningEffort | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    min_p: MinP | None = None
    top_k: TopK | None = None


def _count_names(mix: Any) -> Any:
    """Turns a name or a list of names into weights; leaves the rest to validation."""
    names = [mix] if isinstance(mix, str) else mix
    return dict(Counter(names)) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else mix


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptConfig:
    """The prompts.

    Attributes:
        family: name of the chat format; "auto" derives it from the model.
        variants: prompt variants of your own, by name.
        mix: the variants that attempts use, with weights: {tool = 3, reasoning = 1}, a list of names or one name.
        reasoning_effort: for models that have such a setting (gpt-oss).
    """

    family: Literal["auto", FamilyName] = "auto"
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    mix: Annotated[dict[str, Positive], BeforeValidator(_count_names), Field(min_length=1)] = field(
        default_factory=lambda: {"tool": 1.0}
    )
    reasoning_effort: ReasoningEffort = "high"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerConfig:
    """The local vLLM server. None leaves an option to the preset.

    Attributes:
        preset: name of a set of flags (`server.flags`); "auto" chooses by the model and the machine.
        context_tokens: longest prompt and answer together; by default at most 65,536, or 81,920 for gpt-oss where the KV cache
            holds it for all slots.
        memory_share: share of the GPU's memory that vLLM takes.
        kv_cache_dtype, attention_backend, moe_backend, quantization, load_format: vLLM's names.
        tensor_parallel, data_parallel: GPUs per copy of the model, and copies. The turns of an attempt stay on one.
        speculative: how tokens are drafted. "auto" takes what the files of `draft_model` are for, and drafts nothing without one;
            "eagle" (an EAGLE-3 head) and "draft" (a smaller model) need one too. `sampling.min_p`, which vLLM refuses under
            speculation, becomes the top_p of 1 / (1 + min_p) (server/speculation.py), also in prompt variants.
        draft_model: folder of the draft.
        speculative_tokens: tokens drafted per step; None chooses 2 or 3 by slots and experts.
        speculative_options: further fields of vLLM's --speculative-config, such as {draft_sample_method = "probabilistic"}.
        compile_cache: a packed compile cache (`aimo-solver cache pack`) that is put in place before the start.
        start_timeout_s: longest wait for the server to become ready.
        stall_s: the server counts as hung after so many seconds without a token while requests run.
        restarts: how often a failed server is started again; counted anew after every problem that ended well.
        extra_args: appended to the command line unchanged.
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
    speculative: Literal["auto", "none", "ngram", "eagle", "draft"] = "auto"
    draft_model: str | None = None
    speculative_tokens: Count | None = None
    speculative_options: dict[str, Any] = field(default_factory=dict)
    compile_cache: str | None = None
    start_timeout_s: Positive = 900.0
    stall_s: Positive = 60.0
    restarts: Annotated[int, Field(ge=0)] = 3
    extra_args: tuple[str, ...] = ()
