"""The progress of `evaluate` in the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from aimo_solver.lab.report.watch import result_line
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import RunningAttempt

_STATES = {"waiting": ("·", "dim"), "thinking": ("▸", "cyan"), "tool": ("λ", "yellow"), "answering": ("!", "magenta")}


class TerminalProgress:
    """Prints a line for each problem that ends; on a terminal, also shows open problems with their attempts."""

    def __init__(self, console: Console, problems: int) -> None:
        self._console = console
        self._problems = problems
        self._open: dict[str, _OpenProblem] = {}
        self._results: list[ProblemResult] = []
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> TerminalProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def problem_started(self, problem: Problem, allotted_s: float) -> None:
        self._open[problem.id] = _OpenProblem(problem, allotted_s)

    def attempt_changed(self, attempt: RunningAttempt) -> None:
        self._open[attempt.problem.id].runs[attempt.index] = attempt

    def attempt_finished(self, attempt: Attempt) -> None:
        self._open[attempt.problem_id].finished[attempt.index] = attempt

    def problem_finished(self, result: ProblemResult) -> None:
        self._open.pop(result.problem_id, None)
        self._results.append(result)
        self._console.print(result_line(result, f"{len(self._results):>3}/{self._problems}  "), soft_wrap=True)

    def _render(self) -> RenderableType:
        right = sum(result.right is True for result in self._results)
        known = sum(result.right is not None for result in self._results)
        head = f"{len(self._results)} of {self._problems} problems"
        if known:
            head += f", {right} of {known} right"
        return Group(Text(head, style="bold"), *(problem.row() for problem in self._open.values()))


class _OpenProblem:
    def __init__(self, problem: Problem, seconds: float) -> None:
        self.problem = problem
        self.seconds = seconds
        self.started = time.monotonic()
        self.runs: dict[int, RunningAttempt] = {}
        self.finished: dict[int, Attempt] = {}

    def row(self) -> Text:
        row = Text(f"{self.problem.id:<10} {time.monotonic() - self.started:5.0f}/{self.seconds:.0f} s  ")
        for index, run in sorted(self.runs.items()):
            attempt = self.finished.get(index)
            if attempt is None:
                mark, style = _STATES[run.state]
                row.append(f" {mark}{run.turns}", style=style)
            elif attempt.answer is not None:
                row.append(f" {attempt.answer}", style="green")
            else:
                row.append(" –", style="red" if attempt.finish_reason is FinishReason.ENGINE_ERROR else "dim")
        return row


def result_table(results: Sequence[ProblemResult]) -> Table:
    """The final table of a run."""
    table = Table(title="Results", title_justify="left")
    for name in ("id", "answer", "truth", "right", "votes", "attempts", "tool calls", "tokens", "seconds"):
        table.add_column(name, justify="left" if name == "id" else "right")
    for result in results:
        right = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[result.right]
        truth = "" if result.truth is None else escape(str(result.truth))  # LaTeX has brackets
        numbers = (result.votes, result.attempts, result.tool_calls, result.tokens)
        table.add_row(result.problem_id, escape(str(result.answer)), truth, right, *map(str, numbers), f"{result.seconds:.1f}")
    return table
