"""The texts of a prompt, and every text that the library writes into a conversation after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aimo_solver.chat.options import ReasoningEffort


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


TOOL = "python"
TOOL_PARAMETER = "code"
PARAMETER_DESCRIPTION = "Python code."
TOOL_DESCRIPTION = (
    "Python runs in a stateful Jupyter session: imports, variables and functions persist between calls. The result is what the "
    "code prints and the value of its last expression; more than {output_chars} characters are cut in the middle. A call times "
    "out after {timeout_s} seconds. {libraries} are installed; mpmath computes with 64 digits. There is no internet access."
)
"""With the placeholders of `fill_in`."""


def declare_tool(description: str) -> dict[str, Any]:
    """Returns the declaration in OpenAI's format, which chat templates expect."""
    parameter = {"type": "string", "description": PARAMETER_DESCRIPTION}
    parameters = {"type": "object", "properties": {TOOL_PARAMETER: parameter}, "required": [TOOL_PARAMETER]}
    return {"type": "function", "function": {"name": TOOL, "description": description, "parameters": parameters}}


FENCED_TOOL = (
    "To run Python, write it in a block that opens with ```python and closes with ```. It is run as soon as the block closes, "
    "and its output follows in a block that opens with ```output; never write an output block yourself."
)
"""Precedes the tool's description for models without native tool calls."""


COMPLAINT = "{reason} Go on."
"""Follows a turn that cannot be the last one; `reason` is a sentence or more."""

NOTHING_RUN = "Nothing was run."
"""Ends the reason for a malformed turn."""

NO_ANSWER = "No answer was found in your text. The answer is {answer}; write it as \\boxed{N} when you have it."
OUT_OF_RANGE = "The answer in your text is not {answer}. Look for the mistake, and write the answer as \\boxed{N}."
"""Reasons for a final text without an answer that counts, with a placeholder of `variants.fill_in`."""

LOOPED = "Your text repeats itself and was stopped. Take another way, or give the answer that you have."
"""The reason for a turn that was ended because of a loop."""

WAIT = "Wait. Check your answer in a second way before you settle on it."
"""The reason for an early answer."""

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
LOOPING = "The text above repeats itself"
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
