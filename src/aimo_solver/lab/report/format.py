"""Numbers as text, and round values for the marks of an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from aimo_solver.results import Attempt

Format = Callable[[float], str]


def duration(seconds: float) -> str:
    """Seconds in words: 8.4 s, 2 min 05 s, 3 h 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def short_time(seconds: float) -> str:
    """Seconds in few characters: 45s, 2m30, 1h15."""
    if seconds < 60:
        return f"{seconds:g}s"
    hours, minutes = divmod(round(seconds) // 60, 60)
    rest = round(seconds) % 60
    if hours:
        return f"{hours}h{minutes:02}" if minutes else f"{hours}h"
    return f"{minutes}m{rest:02}" if rest else f"{minutes}m"


def short_number(number: float) -> str:
    """A number in few characters: 950, 12.4k, 3.1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            scaled = number / (1e3 if unit == "k" else size)
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}".removesuffix(".0") + unit
    return f"{number:,.0f}" if number == round(number) else f"{number:.2f}"


def plain_value(value: object) -> str:
    """The value of an event or option, floats with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """A share as a whole percentage: 40 %."""
    return f"{100 * share:.0f} %"


def percentage_points(share: float) -> str:
    """A difference of shares with its sign: +4.0, −12.5, 0.0."""
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def prefix_losses(attempts: Iterable[Attempt]) -> str:
    """The turns whose prefix the server had lost, in words; empty if there are none."""
    lost = [attempt for attempt in attempts if attempt.lost_turns]
    turns = sum(attempt.lost_turns for attempt in lost)
    tokens, seconds = sum(attempt.lost_tokens for attempt in lost), sum(attempt.lost_s for attempt in lost)
    if not turns:
        return ""
    named = "1 turn" if turns == 1 else f"{turns:,} turns"
    return f"{named} lost the prefix in the server's cache: {tokens:,} tokens computed again, about {duration(seconds)}"


def ticks(high: float, most: int = 6) -> list[float]:
    """Round values from 0 to `high`, at most about `most` of them."""
    if high <= 0:
        return [0.0]
    scale = 10.0 ** math.floor(math.log10(high / most))
    step = next(scale * factor for factor in (1, 2, 5, 10, 20) if high / (scale * factor) <= most)
    return [step * index for index in range(int(high / step + 1e-9) + 1)]


def count_ticks(high: float, most: int = 5) -> list[float]:
    """Whole numbers from 0 to `high`."""
    return [mark for mark in ticks(high, most) if mark == int(mark)]


def time_ticks(high: float) -> list[float]:
    """Round seconds, minutes or hours from 0 to `high`."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    step = next((step for step in steps if high / step <= 8), 14400)
    return [float(step * index) for index in range(int(high / step) + 1)] if high > 4 else ticks(high)


def log_ticks(low: float, high: float) -> list[float]:
    """At most seven values between: 1, 2, 5, 10 ..., or powers of ten only."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(marks) <= 7:
            break
    return marks
