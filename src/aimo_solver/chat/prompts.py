"""Every text that the library writes for the models, and the variants of the prompt.

A variant is the same for every family: chat formats put its texts where their models expect them, add turn markers and declare
the tool. No variant of the library mentions a modulus: a problem that needs one states it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from aimo_solver.config import Config
from aimo_solver.options import KernelConfig, PromptConfig, ReasoningEffort, SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The texts that open one conversation, as `VariantConfig` describes them.

    Attributes:
        user: the problem and the suffix.
        tool: the description of the Python tool; None if it is not declared.
    """

    user: str
    identity: str = ""
    system: str = ""
    developer: str = ""
    tool: str | None = None
    reasoning_effort: ReasoningEffort = "high"

    @property
    def instructions(self) -> str:
        """Everything but the user's message and the tool, for families with one system message for all of it."""
        return join_texts(self.identity, self.system, self.developer)


def join_texts(*texts: str) -> str:
    """Returns the texts that are not empty as paragraphs."""
    return "\n\n".join(text.strip() for text in texts if text.strip())


@dataclass(frozen=True, slots=True)
class PythonTool:
    """The Python tool. `parameter` holds the code; `description` contains the placeholders of `fill_in`."""

    name: str
    description: str
    parameter: str
    parameter_description: str

    def as_function(self, description: str) -> dict[str, Any]:
        """Returns the declaration in OpenAI's format, which chat templates expect."""
        parameter = {"type": "string", "description": self.parameter_description}
        parameters = {"type": "object", "properties": {self.parameter: parameter}, "required": [self.parameter]}
        return {"type": "function", "function": {"name": self.name, "description": description, "parameters": parameters}}


PYTHON_TOOL = PythonTool(
    name="python",
    description=(
        "Python runs in a stateful Jupyter session: imports, variables and functions persist between calls. The result is what "
        "the code prints and the value of its last expression; more than {output_chars} characters are cut in the middle. A "
        "call times out after {timeout_s} seconds. {libraries} are installed; mpmath computes with 64 digits. There is no "
        "internet access."
    ),
    parameter="code",
    parameter_description="Python code.",
)

FENCED_TOOL = (
    "To run Python, write it in a block that opens with ```python and closes with ```. It is run as soon as the block closes, "
    "and its output follows in a block that opens with ```output; never write an output block yourself."
)
"""Precedes the tool's description for models without native tool calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptVariant:
    """The texts around a problem, and how its attempts are sampled; `VariantConfig` describes the fields.

    Attributes:
        reasoning_effort, temperature, top_p, min_p, top_k: None means as the configuration says.
    """

    name: str
    identity: str = ""
    system: str = ""
    developer: str = ""
    suffix: str = ""
    tool: bool = True
    tool_description: str = PYTHON_TOOL.description
    reasoning_effort: ReasoningEffort | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None

    def fill(self, problem: str, config: Config) -> Prompt:
        """Returns the prompt for a problem."""
        identity, system, developer, suffix, tool = (
            fill_in(text, config.kernels)
            for text in (self.identity, self.system, self.developer, self.suffix, self.tool_description)
        )
        return Prompt(
            user=f"{problem}\n\n{suffix}" if suffix else problem,
            identity=identity,
            system=system,
            developer=developer,
            tool=tool if self.tool else None,
            reasoning_effort=self.reasoning_effort or config.prompt.reasoning_effort,
        )

    def sampling(self, default: SamplingConfig) -> SamplingConfig:
        """Returns how its attempts are sampled."""
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "min_p", "top_k")}
        return replace(default, **{name: value for name, value in own.items() if value is not None})


def fill_in(text: str, kernels: KernelConfig) -> str:
    """Returns the text with the limits of a call and the imported modules in place of their placeholders."""
    preloaded = [name for name in kernels.preload if find_spec(name.partition(".")[0])]
    *libraries, last = ["numpy", "sympy", "mpmath", *preloaded]
    values = {
        "{timeout_s}": f"{kernels.timeout_s:g}",
        "{output_chars}": f"{kernels.output_chars:,}",
        "{libraries}": f"{', '.join(libraries)} and {last}",
    }
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def prompt_variants(config: PromptConfig) -> dict[str, PromptVariant]:
    """Returns all variants by name: the library's, and those of the configuration, which replace them."""
    variants = dict(VARIANTS)
    for name, own in config.variants.items():
        values = {key: value for key, value in asdict(own).items() if key != "base" and value is not None}
        variants[name] = replace(VARIANTS[own.base or (name if name in VARIANTS else "tool")], name=name, **values)
    return variants


def take_turns(variants: Mapping[str, PromptVariant], mix: Mapping[str, float]) -> Iterator[PromptVariant]:
    """Yields the variants of a mix without end, so that after every attempt their numbers are close to their weights.

    This is smooth weighted round-robin, as nginx balances its upstream servers.
    """
    lead = dict.fromkeys(mix, 0.0)
    while True:
        for name, weight in mix.items():
            lead[name] += weight
        chosen = max(lead, key=lambda name: lead[name])
        lead[chosen] -= sum(mix.values())
        yield variants[chosen]


COMPLAINT = "{reason} Go on."
"""Follows a turn that cannot be the last one; `reason` is a sentence or more."""

NOTHING_RUN = "Nothing was run."
"""Ends the reason for a malformed turn."""

NO_ANSWER = "No answer was found in your text. The answer is an integer from 0 to 99999; write it as \\boxed{N} when you have it."
OUT_OF_RANGE = (
    "The answer in your text is not an integer from 0 to 99999. Look for the mistake, and write the answer as \\boxed{N}."
)
"""Reasons for a final text without an answer that counts."""

NOT_RUN = "[not run: time is up]"
"""The result of a call that came too late."""

LEFT_OUT = "[{count} more calls in this turn were not run; make fewer at a time]"
"""Ends the last result of a turn with more than `MAX_CALLS` calls."""

NO_SESSION = "[not run: no Python session is free at the moment. Go on without Python, or call it again later.]"
"""The result of a call that got no kernel."""

SESSION_LOST = "[no result: the Python session was lost with all its variables. Go on without Python, or call it again.]"
"""The result of a call during which the kernel was lost."""

NO_PYTHON = "[not run: Python is not available any more. Go on without it.]"
"""The result of a call when kernels are lost for good."""

TIME_UP = "Time is up"
TOKENS_UP = "The token limit is reached"
TURNS_UP = "The turn limit is reached"
ANSWER_MISSING = "No answer was found in the text above"
SERVER_FAULT = "The conversation cannot go on"
"""Why the answer is asked for; the beginnings of the three texts that follow."""

NO_RESULT = "[no result: {why}]"
"""The result of a call whose output the model has not seen; `why` begins with a small letter."""

END_THOUGHTS = "{why}, so I settle on the most likely answer now."
"""Ends the model's thoughts."""

ANSWER_NOW = "{why}. Give your final answer now, as \\boxed{{N}}, and nothing else."
"""The user message after a turn that ended without an answer."""

FINAL_ANSWER = "The final answer is $\\boxed{"
"""Opens the final text; the model continues with the number."""


def no_result(why: str) -> str:
    """Returns the result of a call whose output the model has not seen."""
    return NO_RESULT.format(why=f"{why[:1].lower()}{why[1:]}")


def close_box(text: str, *, ended: bool) -> str:
    """Adds the brace that a model forgot if it ended the final text that `FINAL_ANSWER` opened."""
    return text + "}" if ended and text.count("{") > text.count("}") else text


_INTEGER = "The answer is an integer from 0 to 99999. Put your final answer in \\boxed{}, the number alone."
_EXPERT = "You are an expert at mathematical olympiads."

_VARIANTS = (
    PromptVariant(
        name="tool",
        identity=f"{_EXPERT} {_INTEGER}",
        suffix="You can use Python with {libraries} to solve this problem.",
    ),
    PromptVariant(
        name="tool-developer",
        developer=(
            f"{_EXPERT} Solve the problem by careful reasoning, and use the Python tool whenever it helps: for exact "
            "computation, for a search over cases, for trying small cases, and to check your result in a second way before you "
            f"answer. {_INTEGER}"
        ),
        tool_description=(  # the one that gpt-oss was trained with, with the limits that hold here
            "Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool "
            "should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when "
            "creating plots, tables, or files).\n\n"
            "When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook "
            "environment. python will respond with the output of the execution or time out after {timeout_s} seconds. "
            "{libraries} are installed. There is no internet access."
        ),
    ),
    PromptVariant(name="bare", tool=False),
    PromptVariant(
        name="reasoning",
        identity=(
            f"{_EXPERT} Solve the problem by rigorous reasoning alone, and check every step and the result before you answer. "
            f"{_INTEGER}"
        ),
        tool=False,
    ),
    PromptVariant(
        name="tool-suffix",
        suffix=(
            "Reason step by step, and use Python for exact computation, for a search over cases and to check your result. "
            f"{_INTEGER}"
        ),
    ),
    PromptVariant(name="reasoning-suffix", suffix=f"Please reason step by step. {_INTEGER}", tool=False),
    PromptVariant(
        name="code-first",
        identity=(
            "You are an expert at mathematical olympiads and a strong programmer. Begin by computing: brute-force small or "
            "whole cases with the Python tool, look for the pattern, then derive or verify the general result. "
            f"{_INTEGER}"
        ),
    ),
    PromptVariant(
        name="tool-zh",
        identity=(
            "你是数学奥林匹克竞赛专家。请仔细推理来解题，并在有帮助时使用 Python 工具：精确计算、枚举情形、试验小规模的例子，"
            "以及在作答前用另一种方法检验结果。请用中文思考。"
            "答案是 0 到 99999 之间的整数，请把最终答案（只写数字）放在 \\boxed{} 中。"
        ),
    ),
    PromptVariant(
        name="reasoning-zh",
        identity=(
            "你是数学奥林匹克竞赛专家。请仅凭严密的推理解题，并在作答前检查每一步和结果。请用中文思考。"
            "答案是 0 到 99999 之间的整数，请把最终答案（只写数字）放在 \\boxed{} 中。"
        ),
        tool=False,
    ),
    PromptVariant(
        name="tool-ru",
        identity=(
            "Вы эксперт по математическим олимпиадам. Решите задачу строгим рассуждением и пользуйтесь инструментом Python, "
            "когда он полезен: для точных вычислений, перебора случаев, проверки малых примеров и проверки результата другим "
            "способом. Рассуждайте по-русски. Ответ — целое число от 0 до 99999; запишите его, только число, в \\boxed{}."
        ),
    ),
)

VARIANTS = {variant.name: variant for variant in _VARIANTS}
"""The variants of the library by name. The default is close to what the best public runs told gpt-oss: short, as the system
message's identity, without a developer message, with the true limits of the tool and a suffix that names the libraries."""
