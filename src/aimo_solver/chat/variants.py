"""The variants of the prompt: the library's, those of the configuration, and the order in which attempts use them.

A variant is the same for every family: chat formats put its texts where their models expect them, add turn markers and declare
the tool. No variant of the library mentions a modulus: a problem that needs one states it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

from aimo_solver.chat.options import PromptConfig, ReasoningEffort
from aimo_solver.chat.prompts import TOOL_DESCRIPTION, Prompt
from aimo_solver.config import Config
from aimo_solver.options import SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptVariant:
    """The texts around a problem, and how its attempts are sampled; `VariantConfig` describes the fields.

    Attributes:
        reasoning_effort, temperature, top_p, min_p, top_k: None means the configured value.
    """

    name: str
    identity: str = ""
    system: str = ""
    developer: str = ""
    suffix: str = ""
    tool: bool = True
    tool_description: str = TOOL_DESCRIPTION
    reasoning_effort: ReasoningEffort | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None

    def fill(self, problem: str, config: Config) -> Prompt:
        """Returns the prompt for a problem."""
        identity, system, developer, suffix, tool = (
            fill_in(text, config) for text in (self.identity, self.system, self.developer, self.suffix, self.tool_description)
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


def fill_in(text: str, config: Config) -> str:
    """Fills in the placeholders: the kind of answer, the limits of a call and the imported modules."""
    kernels, (lowest, highest) = config.kernels, config.answers.range
    if config.answers.kind == "symbolic":
        answer, in_chinese, in_russian = "an exact value in LaTeX", "用 LaTeX 表示的精确值", "точное значение в LaTeX"
    elif config.answers.modulus is not None:
        answer, in_chinese, in_russian = "an integer", "整数", "целое число"
    else:
        answer = f"an integer from {lowest} to {highest}"
        in_chinese, in_russian = f"{lowest} 到 {highest} 之间的整数", f"целое число от {lowest} до {highest}"
    preloaded = filter(_is_installed, kernels.preload)
    *libraries, last = ["numpy", "sympy", "mpmath", *preloaded]
    values = {
        "{answer}": answer,
        "{answer_zh}": in_chinese,
        "{answer_ru}": in_russian,
        "{timeout_s}": f"{kernels.timeout_s:g}",
        "{output_chars}": f"{kernels.output_chars:,}",
        "{libraries}": f"{', '.join(libraries)} and {last}",
    }
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module.partition(".")[0]) is not None
    except ValueError:  # no name of a module
        return False


def prompt_variants(config: PromptConfig) -> dict[str, PromptVariant]:
    """Returns all variants by name: the library's, and those of the configuration, which replace them."""
    variants = dict(VARIANTS)
    for name, own in config.variants.items():
        values = {key: value for key, value in asdict(own).items() if key != "base" and value is not None}
        variants[name] = replace(VARIANTS[own.base or (name if name in VARIANTS else "tool")], name=name, **values)
    return variants


def take_turns(variants: Mapping[str, PromptVariant], mix: Mapping[str, float]) -> Iterator[PromptVariant]:
    """Yields the variants of a mix endlessly; after every attempt their counts are nearly proportional to their weights.

    This is smooth weighted round-robin, as used by nginx for its upstream servers.
    """
    lead = dict.fromkeys(mix, 0.0)
    while True:
        for name, weight in mix.items():
            lead[name] += weight
        chosen = max(lead, key=lambda name: lead[name])
        lead[chosen] -= sum(mix.values())
        yield variants[chosen]


_ANSWER = "The answer is {answer}. Put your final answer in \\boxed{}, with nothing else in it."
_EXPERT = "You are an expert at mathematical olympiads."

_VARIANTS = (
    PromptVariant(
        name="tool",
        identity=f"{_EXPERT} {_ANSWER}",
        suffix="You can use Python with {libraries} to solve this problem.",
    ),
    PromptVariant(
        name="tool-developer",
        developer=(
            f"{_EXPERT} Solve the problem by careful reasoning, and use the Python tool whenever it helps: for exact "
            "computation, for a search over cases, for trying small cases, and to check your result in a second way before you "
            f"answer. {_ANSWER}"
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
            f"{_ANSWER}"
        ),
        tool=False,
    ),
    PromptVariant(
        name="tool-suffix",
        suffix=(
            "Reason step by step, and use Python for exact computation, for a search over cases and to check your result. "
            f"{_ANSWER}"
        ),
    ),
    PromptVariant(name="reasoning-suffix", suffix=f"Please reason step by step. {_ANSWER}", tool=False),
    PromptVariant(
        name="code-first",
        identity=(
            "You are an expert at mathematical olympiads and a strong programmer. Begin by computing: brute-force small or "
            "whole cases with the Python tool, look for the pattern, then derive or verify the general result. "
            f"{_ANSWER}"
        ),
    ),
    PromptVariant(
        name="tool-zh",
        identity=(
            "你是数学奥林匹克竞赛专家。请仔细推理来解题，并在有帮助时使用 Python 工具：精确计算、枚举情形、试验小规模的例子，"
            "以及在作答前用另一种方法检验结果。请用中文思考。"
            "答案是{answer_zh}，请把最终答案（只写答案）放在 \\boxed{} 中。"
        ),
    ),
    PromptVariant(
        name="reasoning-zh",
        identity=(
            "你是数学奥林匹克竞赛专家。请仅凭严密的推理解题，并在作答前检查每一步和结果。请用中文思考。"
            "答案是{answer_zh}，请把最终答案（只写答案）放在 \\boxed{} 中。"
        ),
        tool=False,
    ),
    PromptVariant(
        name="tool-ru",
        identity=(
            "Вы эксперт по математическим олимпиадам. Решите задачу строгим рассуждением и пользуйтесь инструментом Python, "
            "когда он полезен: для точных вычислений, перебора случаев, проверки малых примеров и проверки результата другим "
            "способом. Рассуждайте по-русски. Ответ — {answer_ru}; запишите в \\boxed{} только его."
        ),
    ),
)

VARIANTS = {variant.name: variant for variant in _VARIANTS}
"""The variants of the library by name. The default is close to what the best public runs told gpt-oss: short, as the system
message's identity, without a developer message, with the actual limits of the tool and a suffix that names the libraries."""
