"""The Pareto plot of a benchmark: quality against speed. Each row is a marker, whose area is the memory.

Both panels read the same way: better is up and to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin
from pathlib import Path
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

from var_toolkit.evaluation.bench.machine import threads
from var_toolkit.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

DPI = 120
CROSSING = 60  # square pixels of covered things that a line through something is worth
LARGEST = 700  # area of the largest marker, in square points
USUAL = 200  # where no memory is known
HEADING = 120  # characters of a line of the heading
LABEL = 32  # characters of a name in the plot
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#666666")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")  # the next one each time the colours have been used up


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates (higher is better), by rising x."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front[::-1]


def appearance(row: int) -> tuple[str, str]:
    """Colour and marker of a row; those of the first 64 rows are distinct."""
    return COLOURS[row % len(COLOURS)], MARKERS[row // len(COLOURS) % len(MARKERS)]


def write_plot(told: dict[str, Any], path: Path) -> None:
    """Draw the rows whose quality is known into a PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in told["rows"] if row["error"] is None and "class_agreement" in (row["quality_found"] or {})]
    agreement = [100 * row["quality_found"]["class_agreement"] for row in rows]
    distance = [row["quality_found"]["distance"] for row in rows]
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 5.6), dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)  # a canvas of its own: nothing of pyplot, no display
        panels = figure.subplots(1, 2)
        _panel(panels[0], rows, agreement, "class agreement, %")
        _panel(panels[1], rows, distance, "Fréchet distance to new renderings (axis inverted)", falling=True)
        figure.suptitle(_title(told, rows), fontsize=10, color="#555555")
        canvas.draw()  # from here on every marker has its position, around which labels look for theirs
        figure.set_layout_engine("none")
        for axes, heights in zip(panels, (agreement, distance), strict=True):
            _label(axes, rows, heights)
        write_whole(path, lambda to: figure.savefig(to, format="png"))


def _title(told: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    on, memory = told["machine"], [row["memory_growth_bytes"] / 2**20 for row in rows]
    area = (
        f"area of a marker: memory beyond that of an empty process, {min(memory):.0f} to {max(memory):.0f} MiB; "
        if max(memory) > 0  # some systems do not tell
        else ""
    )
    return fill(
        f"{on['cpu']}, {threads(on['threads'])}, torch {on['torch']}; {area}line: rows that no other row beats in both "
        "speed and quality",
        HEADING,
    )


def _panel(axes: Axes, rows: list[dict[str, Any]], heights: list[float], name: str, *, falling: bool = False) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    speeds = [row["images_per_second"] for row in rows]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("images per second")
    axes.set_ylabel(name)
    axes.margins(0.18)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    front = pareto_front([(x, -y if falling else y) for x, y in zip(speeds, heights, strict=True)])
    axes.plot([speeds[i] for i in front], [heights[i] for i in front], color="#bbbbbb", zorder=0.9)
    areas = _areas(rows)
    for i in sorted(range(len(rows)), key=lambda i: -areas[i]):  # the small ones on top
        colour, marker = appearance(i)
        axes.scatter(speeds[i], heights[i], s=areas[i], color=colour, marker=marker, alpha=0.85, edgecolors="white")
    if falling:
        axes.invert_yaxis()


def _areas(rows: list[dict[str, Any]]) -> list[float]:
    largest = max(row["memory_growth_bytes"] for row in rows)
    return [max(LARGEST * row["memory_growth_bytes"] / largest, 20) if largest else USUAL for row in rows]


@dataclass(frozen=True)
class Place:
    """Where a label may be: its distance from the marker, in points, and which of its sides faces the marker."""

    dx: float
    dy: float

    def move(self, label: Annotation) -> None:
        """Put a label here."""
        label.set_position((self.dx, self.dy))
        label.set_horizontalalignment("left" if self.dx > 1 else "right" if self.dx < -1 else "center")
        label.set_verticalalignment("bottom" if self.dy > 1 else "top" if self.dy < -1 else "center")


def _places(radius: float) -> list[Place]:
    """Beside, above, below and diagonally, near and then farther."""
    angles = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200)
    away = (radius + gap for gap in (3, 14, 28, 44, 64))
    return [Place(far * cos(radians(a)), far * sin(radians(a))) for far in away for a in angles]


def _label(axes: Axes, rows: list[dict[str, Any]], heights: list[float]) -> None:
    """Write each name beside its marker, at the first of several positions where it covers the least."""
    from matplotlib.transforms import Bbox

    points = [(row["images_per_second"], y) for row, y in zip(rows, heights, strict=True)]
    pixels = [tuple(point) for point in axes.transData.transform(points)]
    radii = [area**0.5 / 2 for area in _areas(rows)]  # matplotlib's areas are those of the square around a circle
    taken = []  # boxes of markers and of labels already written
    for (x, y), radius in zip(pixels, radii, strict=True):
        reach = radius * DPI / 72
        taken.append(Bbox.from_bounds(x - reach, y - reach, 2 * reach, 2 * reach))
    for row, point, pixel, radius in zip(rows, points, pixels, radii, strict=True):
        leader = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkA": 1, "shrinkB": radius}
        label = axes.annotate(
            shorten(row["name"], LABEL, placeholder="…"),
            point,
            textcoords="offset points",
            xytext=(0, 0),
            arrowprops=leader,
        )
        label.set_fontsize(10)
        covered: list[tuple[float, Place]] = []
        for place in _places(radius):
            place.move(label)
            box = _extent(label)
            lost = box.width * box.height - _shared(box, axes.get_window_extent())
            lost += sum(_shared(box, other) for other in taken)
            lost += CROSSING * sum(_crosses(box, pixel, other) for other in taken if not other.contains(*pixel))
            covered.append((lost, place))
            if lost == 0:
                break
        min(covered, key=lambda pair: pair[0])[1].move(label)
        taken.append(_extent(label))


def _crosses(box: Bbox, dot: tuple[float, float], other: Bbox) -> bool:
    """Whether the line from a marker to its label passes through something else, sampled at nine points."""
    end = (min(max(dot[0], box.x0), box.x1), min(max(dot[1], box.y0), box.y1))
    steps = [i / 10 for i in range(1, 10)]
    return any(other.contains(*(a + t * (b - a) for a, b in zip(dot, end, strict=True))) for t in steps)


def _extent(label: Annotation) -> Bbox:
    """The box of the text alone; an annotation's own includes the line to its marker."""
    from matplotlib.text import Text

    label.get_window_extent()  # which moves the text to its position
    return Text.get_window_extent(label)


def _shared(one: Bbox, other: Bbox) -> float:
    """The area that two boxes have in common."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
