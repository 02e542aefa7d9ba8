"""What the models are told, all in one place.

A variant says the same to every family; how a tool is declared and how turns are marked is the chat format's matter.
No variant speaks of a modulus: the problem says it itself where it wants one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aimo_solver.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PromptVariant:
    """One way of asking.

    Attributes:
        system: the system message, "" for none.
        suffix: what follows the problem in the user message.
        tool: the Python tool is declared.
    """

    name: str
    system: str
    suffix: str
    tool: bool

    def user(self, problem: str) -> str:
        """The user message."""
        return f"{problem}\n\n{self.suffix}" if self.suffix else problem


@dataclass(frozen=True, slots=True)
class PythonTool:
    """The one tool, as the families with native tool calls declare it. `parameter` holds the code."""

    name: str
    description: str
    parameter: str
    parameter_description: str


PYTHON_TOOL = PythonTool(
    name="python",
    description=(
        "Runs Python code in a Jupyter session that keeps its variables between calls, and returns what the code prints "
        "and the value of its last expression. numpy, sympy and mpmath are installed. There is no internet access. "
        "A call is stopped after a few seconds."
    ),
    parameter="code",
    parameter_description="Python code.",
)

FENCED_TOOL = (
    "You can run Python. Write the code in a block that opens with ```python and closes with ```; it is run as soon as the "
    "block closes, in a Jupyter session that keeps its variables between blocks, and you then see what it printed in a block "
    "that opens with ```output. numpy, sympy and mpmath are installed. Never write an output block yourself."
)
"""How the tool is declared to models without native tool calls."""

COMPLAINT = "{reason} Nothing was run. Go on."
"""What a model hears after a malformed turn; `reason` is a sentence."""

NOT_RUN = "[not run: time is up]"
"""The result of a call that came too late."""

LEFT_OUT = "[{count} more calls in this turn were not run; make fewer at a time]"
"""Follows the last result of a turn with more than `MAX_CALLS` calls."""

NO_SESSION = "[not run: no Python session is free at the moment. Go on without Python, or call it again later.]"
"""The result of a call that got no kernel."""

SESSION_LOST = "[no result: the Python session was lost with all its variables. Go on without Python, or call it again.]"
"""The result of a call during which the kernel failed for reasons of its own."""

OUT_OF_TIME = "Time is up, so I settle on the most likely answer now."
"""Closes a chain of thought that has to end."""

ANSWER_NOW = "Time is up. Give your final answer now, as \\boxed{N}, and nothing else."
"""The user's words when a turn has already ended without an answer."""

FINAL_ANSWER = "The final answer is $\\boxed{"
"""Opens the final text; the model goes on with the number."""

_INTEGER = "The answer is an integer from 0 to 99999. Put your final answer in \\boxed{}, the number alone."

VARIANTS = (
    PromptVariant(
        name="tool",
        system=(
            "You are an expert at mathematical olympiads. Solve the problem by careful reasoning, and use the Python tool "
            "whenever it helps: for exact computation, for a search over cases, for trying small cases, and to check your "
            "result in a second way before you answer. "
            f"{_INTEGER}"
        ),
        suffix="",
        tool=True,
    ),
    PromptVariant(name="bare", system="", suffix="", tool=False),
    PromptVariant(
        name="reasoning",
        system=(
            "You are an expert at mathematical olympiads. Solve the problem by rigorous reasoning alone, and check every "
            f"step and the result before you answer. {_INTEGER}"
        ),
        suffix="",
        tool=False,
    ),
    PromptVariant(
        name="tool-suffix",
        system="",
        suffix=(
            "Reason step by step, and use Python for exact computation, for a search over cases and to check your result. "
            f"{_INTEGER}"
        ),
        tool=True,
    ),
    PromptVariant(name="reasoning-suffix", system="", suffix=f"Please reason step by step. {_INTEGER}", tool=False),
    PromptVariant(
        name="code-first",
        system=(
            "You are an expert at mathematical olympiads and a strong programmer. Begin by computing: brute-force small or "
            "whole cases with the Python tool, look for the pattern, then derive or verify the general result. "
            f"{_INTEGER}"
        ),
        suffix="",
        tool=True,
    ),
    PromptVariant(
        name="tool-zh",
        system=(
            "你是数学奥林匹克竞赛专家。请仔细推理来解题，并在有帮助时使用 Python 工具：精确计算、枚举情形、试验小规模的例子，"
            "以及在作答前用另一种方法检验结果。请用中文思考。"
            "答案是 0 到 99999 之间的整数，请把最终答案（只写数字）放在 \\boxed{} 中。"
        ),
        suffix="",
        tool=True,
    ),
    PromptVariant(
        name="reasoning-zh",
        system=(
            "你是数学奥林匹克竞赛专家。请仅凭严密的推理解题，并在作答前检查每一步和结果。请用中文思考。"
            "答案是 0 到 99999 之间的整数，请把最终答案（只写数字）放在 \\boxed{} 中。"
        ),
        suffix="",
        tool=False,
    ),
    PromptVariant(
        name="tool-ru",
        system=(
            "Вы эксперт по математическим олимпиадам. Решите задачу строгим рассуждением и пользуйтесь инструментом Python, "
            "когда он полезен: для точных вычислений, перебора случаев, проверки малых примеров и проверки результата другим "
            "способом. Рассуждайте по-русски. Ответ — целое число от 0 до 99999; запишите его, только число, в \\boxed{}."
        ),
        suffix="",
        tool=True,
    ),
)

_NO_SYSTEM = frozenset({"fenced"})
"""Families whose models (DeepSeek-R1's distills say so) want every instruction in the user message."""

_BY_NAME = {variant.name: variant for variant in VARIANTS}


def prompt_variants(mix: Sequence[str], family: str = "") -> tuple[PromptVariant, ...]:
    """The variants of a mix, in its order, as a family is told them; attempt i takes number i modulo their count.

    Raises:
        ConfigError: the mix is empty or names a variant that does not exist.
    """
    if not mix:
        raise ConfigError("prompt.mix", "is empty; name at least one prompt variant")
    for name in mix:
        if name not in _BY_NAME:
            raise ConfigError("prompt.mix", f"unknown variant {name!r}; known: {', '.join(_BY_NAME)}")
    return tuple(_for_family(_BY_NAME[name], family) for name in mix)


def _for_family(variant: PromptVariant, family: str) -> PromptVariant:
    if family not in _NO_SYSTEM or not variant.system:
        return variant
    return replace(variant, system="", suffix="\n\n".join(part for part in (variant.system, variant.suffix) if part))
