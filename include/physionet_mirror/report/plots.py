"""The report's plots, as inline SVG: drawn by matplotlib, coloured by the page's style sheet.

Each function returns a wide and a narrow drawing of the same plot; the page shows the one that fits its window. An
empty list means that there is nothing to draw.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from physionet_mirror.records import Sizes

# Colours that matplotlib draws with, and the style sheet's variables that replace them, so that one drawing works in
# light and dark mode and in print.
_INK, _GRID, _MAIN, _SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_INK: "var(--muted)", _GRID: "var(--line)", _MAIN: "var(--accent)", _SECOND: "var(--second)"}

_WIDTHS = {
    "wide": 9.2,
    "narrow": 4.3,
}  # inches; text then shows at 11 pixels in the wide and about 10 in the narrow drawing


def throughput(series: Sequence[Sequence[float]], many: str = "connections", noun: str = "image") -> list[str]:
    """Files a second, and connections (or ``many`` of what else) at once, over the time of the transfer.

    Args:
        series: ``transfer.series`` of report.json.
        many: What there are several of at once.
        noun: What the files are called.
    """
    if not series:
        return []
    longest = series[-1][0]
    unit, name = next((u, n) for u, n, most in _TIME_UNITS if longest <= most)
    edges = [0.0, *(point[0] / unit for point in series)]

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.stairs([point[1] for point in series], edges, fill=True, color=_MAIN, alpha=0.25, linewidth=0)
        above.stairs([point[1] for point in series], edges, color=_MAIN, linewidth=1.6, baseline=None)
        above.set_ylabel(f"{noun}s/s")
        below.stairs([point[3] for point in series], edges, color=_SECOND, linewidth=1.6, baseline=None)
        below.set_ylabel(many.partition(" ")[0])
        below.set_xlabel(f"{name} since the first shard began")
        for axes in (above, below):
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
            axes.set_xlim(0, edges[-1])
            _plain(axes)
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        figure.align_ylabels()

    return _drawings(
        "throughput",
        3.6,
        draw,
        f"{noun.capitalize()}s per second and {many.removesuffix(' under way')} at once over the time of the transfer",
    )


_TIME_UNITS = (
    (1, "seconds", 180),
    (60, "minutes", 3 * 3600),
    (3600, "hours", 4 * 86400),
    (86400, "days", float("inf")),
)


def sizes(distribution: Sizes, noun: str = "image") -> list[str]:
    """Distribution of the files' sizes (``sizes`` of report.json); ``noun`` is what they are called."""
    if not distribution.counts:
        return []
    unit, name = (1e6, "MB") if distribution.largest >= 1e6 else (1e3, "kB")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        edges = [edge / unit for edge in distribution.edges]
        axes.stairs(distribution.counts, edges, fill=True, color=_MAIN, alpha=0.55)
        axes.axvline(distribution.median / unit, color=_SECOND, linewidth=1.6)
        axes.set_ylabel(f"{noun}s")
        axes.set_xlabel(f"size in {name}; the line is the median")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylim(bottom=0)
        _plain(axes)

    return _drawings("sizes", 2.5, draw, f"Distribution of {noun} sizes")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(length=0, colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _drawings(name: str, height: float, draw: Any, title: str) -> list[str]:
    return [_svg(f"{name}-{kind}", kind, width, height, draw, title) for kind, width in _WIDTHS.items()]


def _svg(name: str, kind: str, width: float, height: float, draw: Any, title: str) -> str:
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        out = io.StringIO()
        # Without a date, the same report gives the same page, byte for byte.
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids are repeated in each drawing, and nothing refers to a group
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="plot {kind}" role="img" aria-label="{title}" {box[0] if box else ""}'
    head += ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :]
