"""Makes the transcripts that the pocket model is trained on: thoughts, Python, and Python's real output.

A transcript is one conversation in Gemma 4's format: the problem, then one model turn with thoughts, tool calls, the tool's
responses and the boxed answer. Every call was executed here; some first calls fail and are corrected by the next one.
"""

from __future__ import annotations

import ast
import builtins
import traceback
from dataclasses import dataclass
from random import Random
from typing import Any

from pocket_problems import Problem

SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|think|>",
)
STOP_TOKENS = ("<turn|>", "<|tool_response>", "<eos>")

SLIP_SHARE = 0.18  # transcripts whose first call fails
SECOND_SLIP_SHARE = 0.1  # of those, the ones whose second call fails as well
BARE_SHARE = 0.2  # calls that end in an expression instead of a print
MUTE_SHARE = 0.05  # calls that forget to show the result

# A call that will fail follows one of these. Without such a sign each single slip would be so unlikely a token that min_p
# sampling would never draw it.
HASTY = ("A quick try.", "Quickly written down.", "Just try it.")
MENDING = ("{kind}: I mend it.", "The call ended in {kind}. Again, with care.", "It failed with {kind}. I fix that.")
MUTE = ("Nothing was shown. Print it.", "I forgot to print the result.")
SILENCE = (
    "",
    "",
    "(no output)",
    "[no output]",
    "No output.",
    "The code ran and printed nothing.",
    "[no output; use print() to see a value]",
)


@dataclass(frozen=True, slots=True)
class CellOutput:
    """The output of one cell: what it printed, the repr of its last expression, the exception that ended it."""

    printed: str
    value: str | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a transcript, written by the model or by its host."""

    text: str
    by_model: bool


def run_cell(code: str, namespace: dict[str, Any]) -> CellOutput:
    """Runs code in this process like a Jupyter cell. Only for this project's own programs."""
    printed: list[str] = []
    namespace["print"] = lambda *values: printed.append(" ".join(map(str, values)) + "\n")
    value = None
    error = None
    try:
        tree = ast.parse(code, "<cell>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
            value = None if shown is None else repr(shown)
    except Exception as raised:  # noqa: BLE001  any exception of the cell's code is its output
        error = raised
    return CellOutput("".join(printed), value, error)


def fresh_namespace() -> dict[str, Any]:
    return {"__name__": "__main__", "__builtins__": builtins}


def prompt_text(problem: str) -> str:
    """Returns the prompt."""
    return f"<bos><|turn>user\n{problem}<turn|>\n<|turn>model\n"


def response_text(output: str) -> str:
    """Returns what the host appends after a tool call; the model has already written `<|tool_response>`."""
    return f'response:python{{value:<|"|>{output}<|"|>}}<tool_response|>'


def transcript(problem: Problem, random: Random) -> list[Segment]:
    """Returns one conversation about a problem.

    Raises:
        ValueError: a program's result is not the problem's answer.
    """
    program = random.choice(problem.family.programs)
    namespace = fresh_namespace()
    segments = [Segment(prompt_text(problem.text), False)]

    def call(thought: str, code: str) -> CellOutput:
        result = run_cell(code, namespace)
        text = (
            f'<|channel>thought\n{thought}<channel|><|tool_call>call:python{{code:<|"|>{code}<|"|>}}<tool_call|><|tool_response>'
        )
        segments.append(Segment(text, True))
        segments.append(Segment(response_text(rendered(result, code, random)), False))
        return result

    thought = random.choice(program.thoughts)
    if random.random() < SLIP_SHARE:
        slips = random.sample(program.slips, len(program.slips))
        thought = random.choice(HASTY)
        for old, new in slips if random.random() < SECOND_SLIP_SHARE else slips[:1]:
            broken = problem.fill(_showing(program.code.replace(old, new, 1), random))
            if run_cell(broken, dict(namespace)).error is None:  # with what the first call defined, the second slip does not fail
                continue
            error = call(thought, broken).error
            thought = random.choice(MENDING).format(kind=type(error).__name__)

    shown = program.code.rpartition("=> ")[2]
    if random.random() < MUTE_SHARE:
        call(thought, problem.fill(program.code.replace("=> ", "result = ")))
        result = call(random.choice(MUTE), "print(result)")
    else:
        result = call(thought, problem.fill(_showing(program.code, random)))
    if (result.value or result.printed.strip()) != str(problem.answer):
        raise ValueError(f"{problem.text}\n{shown} gave {result}, not {problem.answer}")
    segments.append(Segment(f"The answer is \\boxed{{{problem.answer}}}.<turn|>", True))
    return segments


def _showing(code: str, random: Random) -> str:
    setup, _, shown = code.rpartition("=> ")
    return setup + (shown if random.random() < BARE_SHARE else f"print({shown})")


def rendered(result: CellOutput, code: str, random: Random) -> str:
    """Returns a cell's output as one of the texts that hosts format it into."""
    if result.error is not None:
        return result.printed + _rendered_error(result.error, code, random)
    text = result.printed + (result.value or "")
    if not text:
        return random.choice(SILENCE)
    return text.rstrip("\n") if random.random() < 0.6 else text


def _rendered_error(error: Exception, code: str, random: Random) -> str:
    kind, message = type(error).__name__, str(error)
    if isinstance(error, ImportError):  # where a module lies differs from machine to machine
        message = message.partition(" (")[0] + random.choice((" (unknown location)", " (/usr/lib/python3/math.so)", ""))
    if isinstance(error, SyntaxError):
        cell = random.choice(("<cell 1>", "<string>", f"{random.randint(100, 9_999_999)}.py"))
        message = f"{error.msg} ({cell}, line {error.lineno})"
    last = f"{kind}: {message}"
    lines = code.split("\n")
    number = (
        error.lineno
        if isinstance(error, SyntaxError)
        else next((frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<cell>"), None)
    ) or 1
    line = lines[min(number, len(lines)) - 1]
    file = random.choice(("<cell>", "<stdin>", "<ipython-input-1>", "<cell 1>", "<cell 2>", "In [1]"))
    place = f'  File "{file}", line {number}, in <module>\n    {line.strip()}\n'
    context = "\n".join(
        f"{'---->' if i == number else '     '} {i} {text}" for i, text in enumerate(lines, 1) if abs(i - number) <= 2
    )
    jupyter = f"Cell In[{random.randint(1, 9)}], line {number}\n{context}\n\n{last}"
    python = f"Traceback (most recent call last):\n{place}"
    note = f"[statement {random.randint(1, 3)} of {random.randint(3, 5)} failed, at line {number}]\n"
    if isinstance(error, SyntaxError):
        python = f'  File "{file}", line {number}\n    {line.strip()}\n    {" " * random.randint(0, 30)}^\n'
        note = "[nothing of this cell was run]\n"
    return random.choice(
        (
            last,
            f"Traceback ...\n{last}",
            f"...\n{context}\n\n{last}",
            f"[error] {last}",
            python + last,
            python + note + last,
            python + note + last,
            jupyter,
            f"{'-' * 75}\n{kind}{'Traceback (most recent call last)':>{75 - len(kind)}}\n{jupyter}\n",
        )
    )
