"""Drawing SVG by hand: scales, axes, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

Format = Callable[[float], str]


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 2 min 05 s, 3 h 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def short(number: float) -> str:
    """A number in few characters: 950, 12.4k, 3.1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            scaled = number / (1e3 if unit == "k" else size)
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}".removesuffix(".0") + unit
    return f"{number:,.0f}" if number == round(number) else f"{number:.2f}"


def plain(value: object) -> str:
    """A value of an event or option, numbers without noise digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign: +4.0, −12.5, 0.0."""
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def ticks(high: float, most: int = 6, base: Sequence[float] = (1, 2, 5, 10)) -> list[float]:
    """Round values from 0 up to `high`, at most about `most`."""
    if high <= 0:
        return [0.0]
    scale = 10.0 ** math.floor(math.log10(high / most))
    step = next(scale * factor for factor in (*base, 20) if high / (scale * factor) <= most)
    return [step * index for index in range(int(high / step + 1e-9) + 1)]


def time_ticks(high: float) -> list[float]:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    step = next((step for step in steps if high / step <= 8), 14400)
    return [float(step * index) for index in range(int(high / step) + 1)] if high > 4 else ticks(high)


def clock(seconds: float) -> str:
    """Seconds on an axis: 45s, 2m30, 1h15."""
    if seconds < 60:
        return f"{seconds:g}s"
    hours, minutes = divmod(round(seconds) // 60, 60)
    rest = round(seconds) % 60
    if hours:
        return f"{hours}h{minutes:02}" if minutes else f"{hours}h"
    return f"{minutes}m{rest:02}" if rest else f"{minutes}m"


class Canvas:
    """A drawing of fixed inner size; x runs over `0..right`, y is given in pixels."""

    def __init__(self, width: int, height: int, right: float, *, left: int = 44, bottom: int = 22, pad: int = 12) -> None:
        self.width, self.height, self.left, self.bottom = width, height, left, bottom
        self.right = right or 1.0
        self._span = width - left - pad
        self._parts: list[str] = []

    def x(self, value: float) -> float:
        return round(self.left + self._span * min(max(value, 0.0), self.right) / self.right, 1)

    def add(self, text: str) -> None:
        self._parts.append(text)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        self.add(f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>')

    def rect(self, start: float, end: float, y: float, height: float, style: str, title: str = "", radius: float = 2) -> None:
        x = self.x(start)
        width = max(self.x(end) - x, 0.8)
        inside = f"<title>{escape(title)}</title>" if title else ""
        size = f'x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}"'
        self.add(f'<rect {size} rx="{min(radius, width / 2):g}" class="{style}">{inside}</rect>')

    def x_axis(self, values: Sequence[float], form: Format, top: float = 0) -> None:
        base = self.height - self.bottom
        for value in values:
            x = self.x(value)
            self.add(f'<line x1="{x:g}" x2="{x:g}" y1="{top:g}" y2="{base}" class="grid"/>')
            self.text(x, base + 15, form(value), "tick", "middle")

    def y_axis(self, values: Sequence[float], high: float, form: Format, top: float, base: float) -> Callable[[float], float]:
        def y(value: float) -> float:
            return round(base - (base - top) * value / (high or 1), 1)

        for value in values:
            self.add(f'<line x1="{self.left}" x2="{self.width - 12}" y1="{y(value):g}" y2="{y(value):g}" class="grid"/>')
            self.text(self.left - 6, y(value) + 4, form(value), "tick", "end")
        return y

    def svg(self, label: str, style: str = "wide") -> Markup:
        """The drawing. Every text in it went through `escape`."""
        head = f'viewBox="0 0 {self.width} {self.height}" class="plot {style}" role="img" aria-label="{escape(label)}"'
        return Markup(f"<svg {head}>{''.join(self._parts)}</svg>")
