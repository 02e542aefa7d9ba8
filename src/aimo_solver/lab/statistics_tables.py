"""Statistics, comparisons and power as Markdown and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from aimo_solver.lab.breakdown import Part
from aimo_solver.lab.comparison import ComparisonTable, ConfigurationDifference
from aimo_solver.lab.power import Spread
from aimo_solver.lab.run_statistics import Agreement, RunStatistics
from aimo_solver.lab.statistics import Interval


def statistics_markdown(statistics: RunStatistics) -> str:
    """Returns the tables, each under a heading. Shares are percentages, with 95 % intervals clustered by problem."""
    estimates = [
        (
            one.k,
            _percent(one.pass_at),
            f"{100 * one.bounds[0]:.1f} to {100 * one.bounds[1]:.1f}",
            _percent(one.majority_at),
            _percent(one.average_at),
            one.problems,
        )
        for one in statistics.estimates
    ]
    lengths = [
        (one.outcome, one.quantity, one.attempts, *(f"{value:,.0f}" for value in (one.mean, one.low, one.median, one.high)))
        for one in statistics.lengths
    ]
    blocks = [
        _section("Runs", ("run", "problems", "right", "accuracy %", "attempts", "cancelled", "tokens"), _runs(statistics)),
        _section("Attempts per problem", ("k", "pass@k %", "bounds", "maj@k %", "avg@k %", "problems"), estimates),
        *([_agreement(statistics.agreement)] if statistics.agreement else []),
        *(
            _section(title, (name, "attempts", "cancelled", "no answer", "right %", "tokens", "seconds"), map(_part, parts))
            for title, name, parts in (
                ("By prompt", "prompt", statistics.by_prompt),
                ("By finish reason", "finish reason", statistics.by_finish),
                ("By tool error", "an error of this family", statistics.by_error),
            )
            if parts
        ),
        _section("Lengths", ("attempts that are", "quantity", "number", "mean", "10 %", "median", "90 %"), lengths),
        *(f"**Note.** {warning}\n" for warning in statistics.warnings),
        "Brackets: 95 % intervals clustered by problem.\n",
    ]
    return "\n".join(blocks)


def _runs(statistics: RunStatistics) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        (run.name, run.problems, run.right, _percent(run.accuracy), run.attempts, run.cancelled, f"{run.tokens:,}")
        for run in statistics.runs
    ]
    if len(rows) > 1:
        rows.append(("all", statistics.problems, "", _percent(statistics.accuracy), *_sums(statistics)))
    return rows


def comparison_markdown(table: ComparisonTable) -> str:
    """Returns the scores of all configurations, and each against the first."""
    scores = [(one.name, len(one.scores), _points(one.score), ", ".join(map(str, one.scores))) for one in table.configurations]
    first = table.configurations[0].name
    differences = [
        (
            one.name,
            _points(one.difference, "+"),
            "" if one.repeated is None else _points(one.repeated, "+"),
            f"{one.paired.probability:.3f}",
            f"{one.paired.better} / {one.paired.worse}",
            f"{one.paired.p_value:.3g}",
            _needed(one.needed) if one.difference.mean else "",
        )
        for one in table.differences
    ]
    spreads = (f"{one.name}: {_spread(one)}" for one in table.differences)
    columns = ("configuration", "difference", "on these problems", "probability better", "better / worse", "sign test p", "runs")
    blocks = [
        _section(f"Right of {table.problems}", ("configuration", "runs", "mean", "scores"), scores),
        _section(f"Against {first}", columns, differences),
        "Brackets: 95 % intervals. difference: paired by problem, for problems like these; on these problems: from the runs' "
        "scores. runs: of each configuration, to find a difference of this size in four of five cases. Spread of one run's "
        f"score: {'; '.join(spreads)}.\n",
    ]
    return "\n".join(blocks)


def power_markdown(
    difference: float, spread: Spread, needed: int | None, rows: Iterable[tuple[int, float, float | None]], target: float
) -> str:
    """Returns the power by number of runs, given as (runs, power, resampled)."""
    lines = [(runs, f"{power:.3f}", "" if checked is None else f"{checked:.3f}") for runs, power, checked in rows]
    text = (
        f"A difference of {difference:g} right answers of {spread.problems} takes {_needed(needed)} runs of each configuration "
        f"to be found with probability {target:g}.\n"
        f"One run's score has a standard deviation of {spread.deviation:.2f} ({spread.source}).\n"
    )
    return text + "\n" + markdown_table(("runs of each", "power", "resampled"), lines)


def plain_values(record: Any) -> dict[str, Any]:
    """Returns a record as plain values; intervals are objects with `mean`, `low` and `high`."""
    return asdict(record)


def _percent(interval: Interval | None) -> str:
    """A share as a percentage with its interval: 61.2 [55.0, 67.1]."""
    if interval is None:
        return ""
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table whose source is aligned too; all columns but the first are right-aligned."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return f"## {title}\n\n{markdown_table(columns, rows)}"


def _sums(statistics: RunStatistics) -> tuple[object, ...]:
    runs = statistics.runs
    tokens = sum(run.tokens for run in runs)
    return sum(run.attempts for run in runs), sum(run.cancelled for run in runs), f"{tokens:,}"


def _part(part: Part) -> tuple[object, ...]:
    lengths = ("" if part.tokens is None else f"{part.tokens:,.0f}", "" if part.seconds is None else f"{part.seconds:,.1f}")
    return (part.name, part.attempts, part.cancelled, part.silent, _percent(part.right), *lengths)


def _agreement(agreement: Agreement) -> str:
    rows = [
        ("same answer", _percent(agreement.same_answer)),
        ("both right", _percent(agreement.both_right)),
        ("one right", _percent(agreement.one_right)),
        ("neither right", _percent(agreement.neither_right)),
        ("two-run score (both right 1, one right 0.5)", _percent(agreement.two_run)),
    ]
    deviation = agreement.spread.deviation
    return _section(f"Pairs of runs ({agreement.pairs}), {agreement.problems} problems", ("of a pair", "problems %"), rows) + (
        f"\nOne run's score of {agreement.problems} varies from run to run with a standard deviation of {deviation:.2f} by the "
        f"problems' variances, and {agreement.scores:.2f} by the runs' scores; a two-run score with {deviation / 2**0.5:.2f}.\n"
    )


def _points(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"


def _needed(runs: int | None) -> str:
    return "over 100,000" if runs is None else str(runs)


def _spread(contest: ConfigurationDifference) -> str:
    return f"{contest.spread.deviation:.2f} ({contest.spread.source})"
