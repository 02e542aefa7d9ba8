"""Every text that the library writes for the models.

A prompt variant is the same for every family; chat formats add turn markers and the declaration of the tool. No variant
mentions a modulus: a problem that needs one states it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PromptVariant:
    """The texts around a problem.

    Attributes:
        system: the system message, "" for none.
        suffix: what follows the problem in the user message.
        tool: the Python tool is declared.
    """

    name: str
    system: str = ""
    suffix: str = ""
    tool: bool = True

    def user(self, problem: str) -> str:
        """Returns the user message."""
        return f"{problem}\n\n{self.suffix}" if self.suffix else problem


@dataclass(frozen=True, slots=True)
class PythonTool:
    """The declaration of the Python tool. `parameter` holds the code."""

    name: str
    description: str
    parameter: str
    parameter_description: str

    def as_function(self) -> dict[str, Any]:
        """Returns the declaration in OpenAI's format, which chat templates expect."""
        parameter = {"type": "string", "description": self.parameter_description}
        parameters = {"type": "object", "properties": {self.parameter: parameter}, "required": [self.parameter]}
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": parameters}}


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
"""The declaration for models without native tool calls."""

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

_VARIANTS = (
    PromptVariant(
        name="tool",
        system=(
            "You are an expert at mathematical olympiads. Solve the problem by careful reasoning, and use the Python tool "
            "whenever it helps: for exact computation, for a search over cases, for trying small cases, and to check your "
            "result in a second way before you answer. "
            f"{_INTEGER}"
        ),
    ),
    PromptVariant(name="bare", tool=False),
    PromptVariant(
        name="reasoning",
        system=(
            "You are an expert at mathematical olympiads. Solve the problem by rigorous reasoning alone, and check every "
            f"step and the result before you answer. {_INTEGER}"
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
        system=(
            "You are an expert at mathematical olympiads and a strong programmer. Begin by computing: brute-force small or "
            "whole cases with the Python tool, look for the pattern, then derive or verify the general result. "
            f"{_INTEGER}"
        ),
    ),
    PromptVariant(
        name="tool-zh",
        system=(
            "你是数学奥林匹克竞赛专家。请仔细推理来解题，并在有帮助时使用 Python 工具：精确计算、枚举情形、试验小规模的例子，"
            "以及在作答前用另一种方法检验结果。请用中文思考。"
            "答案是 0 到 99999 之间的整数，请把最终答案（只写数字）放在 \\boxed{} 中。"
        ),
    ),
    PromptVariant(
        name="reasoning-zh",
        system=(
            "你是数学奥林匹克竞赛专家。请仅凭严密的推理解题，并在作答前检查每一步和结果。请用中文思考。"
            "答案是 0 到 99999 之间的整数，请把最终答案（只写数字）放在 \\boxed{} 中。"
        ),
        tool=False,
    ),
    PromptVariant(
        name="tool-ru",
        system=(
            "Вы эксперт по математическим олимпиадам. Решите задачу строгим рассуждением и пользуйтесь инструментом Python, "
            "когда он полезен: для точных вычислений, перебора случаев, проверки малых примеров и проверки результата другим "
            "способом. Рассуждайте по-русски. Ответ — целое число от 0 до 99999; запишите его, только число, в \\boxed{}."
        ),
    ),
)

VARIANTS = {variant.name: variant for variant in _VARIANTS}
"""Prompt variants by name, for `prompt.mix`."""
