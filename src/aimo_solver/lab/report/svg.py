"""Charts as SVG. Colours and strokes are CSS classes of `templates/plot.css`, so a page's charts follow its light or dark theme.

SVG is written directly: a page has three charts per problem, each with tooltips, and some with links into the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from math import log
from pathlib import Path

from markupsafe import escape

from aimo_solver.lab.report.format import Format

WIDE, HALF = 1000, 480  # pixels: a chart over the page's width, and one of two side by side
_TOP = 12  # pixels above the inner part

Scale = Callable[[float], float]
Points = Sequence[tuple[float, float]]


def plot_css() -> str:
    """The style sheet of charts; it defines the colours of a page too."""
    return resources.files("aimo_solver.lab.report").joinpath("templates/plot.css").read_text(encoding="utf-8")


class Chart:
    """A chart with one x axis and any number of y scales. A template shows it as inline SVG.

    Args:
        label: its accessible name; the title of a file.
        size: width and height in pixels, with `left`, `right` and `bottom` for what is drawn beside the inner part.
        x: the values at both ends of the x axis.
        log: whether the x axis is logarithmic.
    """

    def __init__(
        self,
        label: str,
        size: tuple[int, int],
        x: tuple[float, float],
        *,
        left: int = 44,
        right: int = 12,
        bottom: int = 22,
        log: bool = False,
    ) -> None:
        self.label = label
        self.width, self.height = size
        self.low, self.high = x if x[1] > x[0] else (x[0], x[0] + 1.0)
        self.left, self.base = left, self.height - bottom
        self._right = self.width - right
        self._log = log
        self._parts: list[str] = []

    def x(self, value: float) -> float:
        """The pixel of a value; a value outside the axis is moved to its end."""
        value = min(max(value, self.low), self.high)
        share = log(value / self.low, self.high / self.low) if self._log else (value - self.low) / (self.high - self.low)
        return round(self.left + (self._right - self.left) * share, 1)

    def x_axis(self, marks: Iterable[float], form: Format, top: float = _TOP) -> None:
        for mark in marks:
            x = self.x(mark)
            self._add("line", "grid", x1=x, x2=x, y1=top, y2=self.base)
            self.text(x, self.base + 15, form(mark), "tick", "middle")

    def y_axis(self, marks: Iterable[float], high: float, form: Format, top: float = _TOP, base: float | None = None) -> Scale:
        """Draws marks and grid lines, and returns the pixel of a value; 0 lies at `base`."""
        zero = self.base if base is None else base

        def y(value: float) -> float:
            return round(zero - (zero - top) * value / (high or 1), 1)

        for mark in marks:
            self._add("line", "grid", x1=self.left, x2=self._right, y1=y(mark), y2=y(mark))
            self.text(self.left - 6, y(mark) + 4, form(mark), "tick", "end")
        return y

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>')

    def row_name(self, y: float, text: str) -> None:
        """Text left of the inner part."""
        self.text(self.left - 8, y, text, "row", "end")

    def bar(self, start: float, end: float, y: float, height: float, style: str, title: str = "", radius: float = 2) -> None:
        x = self.x(start)
        width = max(self.x(end) - x, 0.8)
        self._add("rect", f"mark {style}", title, x=x, y=y, width=round(width, 1), height=height, rx=min(radius, width / 2))

    def bars(self, spans: Iterable[tuple[float, float]], y: float, height: float, style: str) -> None:
        """Bars of one colour as one shape."""
        path = ""
        for start, end in spans:
            width = max(self.x(end) - self.x(start), 0.7)
            path += f"M{self.x(start):g},{y:g}h{width:.1f}v{height:g}h-{width:.1f}z"
        if path:
            self._add("path", f"mark {style}", d=path)

    def line(self, points: Points, y: Scale, style: str, title: str = "") -> None:
        self._add("polyline", style, title, points=" ".join(f"{self.x(at):g},{y(value):g}" for at, value in points))

    def steps(self, points: Points, y: Scale, style: str) -> None:
        """A line from 0 that keeps each value until the next point, and the last one until the end of the axis."""
        path, last = f"M{self.x(self.low):g},{y(0):g}", 0.0
        for at, value in points:
            if value != last:
                path += f"H{self.x(at):g}V{y(value):g}"
                last = value
        self._add("path", style, d=f"{path}H{self.x(self.high):g}")

    def area(self, upper: Points, lower: Points, y: Scale, style: str) -> None:
        """The area between two lines."""
        edge = " ".join(f"{self.x(at):g},{y(value):g}" for at, value in (*upper, *reversed(lower)))
        self._add("polygon", f"mark area {style}", points=edge)

    def vertical(self, at: float, top: float, bottom: float, style: str, title: str = "") -> None:
        """A line between two pixels."""
        self._add("path", style, title, d=f"M{self.x(at):g},{top:g}V{bottom:g}")

    def dot(self, at: float, y: float, radius: float, style: str) -> None:
        self._add("circle", f"mark {style}", cx=self.x(at), cy=y, r=radius)

    @contextmanager
    def group(self, *, title: str = "", link: str = "") -> Iterator[None]:
        """Gives everything drawn in the block one tooltip, or one link to an anchor of the page."""
        name = "a" if link else "g"
        self._parts.append(f'<a href="#{escape(link)}">' if link else "<g>")
        self._parts.append(f"<title>{escape(title)}</title>" if title else "")
        yield
        self._parts.append(f"</{name}>")

    def __html__(self) -> str:
        """The chart for a page with `plot_css`; every text in it is escaped."""
        style = "plot wide" if self.width == WIDE else "plot"
        head = f'viewBox="0 0 {self.width} {self.height}" class="{style}" role="img" aria-label="{escape(self.label)}"'
        return f"<svg {head}>{''.join(self._parts)}</svg>"

    def save(self, path: Path, legend: Sequence[tuple[str, str]] = ()) -> None:
        """Writes a standalone SVG file in the light theme: the label above the chart, the legend below, as (class, text).

        Colours are written out, because most viewers of SVG files do not read CSS variables.
        """
        css = plot_css()
        colours = dict(re.findall(r"--(\w+): light-dark\((#\w+)", css))
        css = re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], css[css.index("}") + 1 :])
        entries = []
        for number, (style, text) in enumerate(legend):
            y = self.height + 10 + 18 * number
            entries.append(f'<rect x="{self.left}" y="{y}" width="10" height="10" rx="3" class="mark {style}"/>')
            entries.append(f'<text x="{self.left + 16}" y="{y + 9}">{escape(text)}</text>')
        height = self.height + 46 + 18 * len(legend)
        head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 -30 {self.width} {height}" width="{self.width}" height="{height}"'
        title = f'<text x="4" y="-10" class="title">{escape(self.label)}</text>'
        inside = "".join((title, *self._parts, *entries))
        path.write_text(f'<svg {head} class="plot file"><style>{css}</style>{inside}</svg>\n', encoding="utf-8")

    def _add(self, name: str, style: str, title: str = "", **attributes: float | str) -> None:
        values = " ".join(f'{key}="{value if isinstance(value, str) else f"{value:g}"}"' for key, value in attributes.items())
        end = f"><title>{escape(title)}</title></{name}>" if title else "/>"
        self._parts.append(f'<{name} {values} class="{style}"{end}')
