"""A bar chart per task, paired differences, and figures 5, 7 and 9: the published curve and yours, over seeds."""

from __future__ import annotations

import io
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mae_transfer.suite.match import pretraining
from mae_transfer.suite.store.records import Measurement
from mae_transfer.suite.tables.cells import Cell, cells, published
from mae_transfer.suite.tables.layouts import LAYOUTS, ROWS

FIGURES = ("figure 5", "figure 7", "figure 9")
WIDEST = 40  # characters that stand side by side below an axis
LONGEST = 52  # characters of a label in a chart
TICK = 16  # characters of one line of a tick's label
INK = "#7a7a7a"  # of text and axes; in a page it becomes the colour of the page's text
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


class Bar(NamedTuple):
    """A row of a bar chart."""

    name: str
    mean: float
    low: float
    high: float
    n: int
    """Number of runs."""
    colour: str
    published: tuple[float, ...] = ()
    """Published numbers that the row stands beside."""


def bars(rows: Sequence[Bar], *, unit: str, chance: float | None) -> Figure:
    """Return a chart with a bar per row: its mean, the range of its runs, and the published numbers as diamonds.

    Chance is a dashed line across each bar.
    """
    handles = _legend(rows)
    keys = len(handles) + (chance is not None)
    figure = Figure(figsize=(4.2, 0.42 * len(rows) + 0.6 + 0.2 * ((keys + 1) // 2)), layout="constrained")
    axes = figure.subplots()
    most = max([0.0, *(max(row.high, *row.published) if row.published else row.high for row in rows)])
    edge = 1.2 * (most or 1.0)
    for at, row in enumerate(rows):
        axes.barh(at, row.mean, height=0.42, color=row.colour, zorder=2)
        axes.text(0, at - 0.28, f" {shortened(row.name)}", va="bottom", ha="left", parse_math=False)
        end = max(row.high, row.mean, *row.published)
        if row.n > 1:
            spread = [[row.mean - row.low], [row.high - row.mean]]
            axes.errorbar(row.mean, at, xerr=spread, color=INK, capsize=3, linewidth=1.2, zorder=3)
        offset = (8 if row.published else 4, 0)
        text = f"{row.mean:.1f}"
        axes.annotate(text, (end, at), offset, textcoords="offset points", va="center", weight="bold", zorder=4)
        for value in row.published:
            axes.plot(value, at, marker="D", markersize=5, color=INK, linestyle="", markerfacecolor="none", zorder=5)
    if chance is not None:
        low, high = zip(*((at - 0.24, at + 0.24) for at in range(len(rows))), strict=True)  # names stand between bars
        line = axes.vlines([chance] * len(rows), low, high, "black", linestyles="--", linewidth=1, zorder=3)
        handles.append((line, f"chance {chance:g}"))
    axes.set_xlim(min(0.0, *(row.low for row in rows)), edge)
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    if handles:
        marks, texts = zip(*handles, strict=True)
        figure.legend(marks, texts, loc="outside lower left", ncols=2, fontsize=8)
    return figure


def _legend(rows: Sequence[Bar]) -> list[tuple[Artist, str]]:
    counts = sorted({row.n for row in rows if row.n > 1})
    found: list[tuple[Artist, str]] = []
    if counts:
        text = f"lowest to highest of {' or '.join(map(str, counts))} runs"
        found.append((Line2D([], [], color=INK, linewidth=1.2), text))
    if any(row.published for row in rows):
        found.append((Line2D([], [], color=INK, marker="D", markerfacecolor="none", linestyle=""), "published"))
    return found


class Gaps(NamedTuple):
    """Paired differences of one comparison."""

    title: str
    outcome: str
    values: tuple[float, ...]
    """One per seed; empty: not measured."""
    unit: str
    published: float | None = None
    margin: float = 0.0
    """The largest difference of equals."""


def differences(panels: Sequence[Gaps]) -> Figure:
    """Return a figure with a line per comparison: the difference of each seed, their mean, and the published one.

    Every line has an axis of its own, which contains zero.
    """
    figure = Figure(figsize=(4.6, 1.1 * len(panels) + 0.3), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        axes.axvline(0, linestyle="--", linewidth=1, color=INK)
        if panel.margin:
            axes.axvspan(-panel.margin, panel.margin, color=INK, alpha=0.12, linewidth=0, label="margin")
        axes.plot(panel.values, [0] * len(panel.values), "o", markersize=5, color="C0", alpha=0.7, label="seeds")
        if panel.values:
            axes.plot(fmean(panel.values), 0, "|", markersize=16, markeredgewidth=2, color="C0", label="mean")
        known = () if panel.published is None else (panel.published,)
        if known:
            axes.plot(known, [0], "D", markersize=6, color=INK, markerfacecolor="none", label="published")
        shown = (0.0, -panel.margin, panel.margin, *panel.values, *known)
        low, high = min(shown), max(shown)
        edge = 0.08 * (high - low or 1.0)
        axes.set_xlim(low - edge, high + edge)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        title = f"{shortened(panel.title)}\n{panel.outcome}"
        axes.set_title(title, loc="left", fontsize=9, parse_math=False)
        axes.set_xlabel("points" if panel.unit == "%" else panel.unit, fontsize=8)
    marks = {text: mark for axes in figure.axes for mark, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*marks.values()], [*marks], loc="outside lower left", ncols=4, fontsize=8)
    return figure


def draw(name: str, found: Sequence[Measurement]) -> Figure | None:
    """Return a figure; None where there are no results for it.

    Yours and the published curve share an axis only at the paper's scale.
    """
    ours = [cell for cell in cells(name, found) if cell.ours]
    if not ours:
        return None
    scales = sorted({cell.scale for cell in ours})
    figure = Figure(layout="constrained")
    parts = figure.subfigures(len(scales), 1, squeeze=False)[:, 0]
    heights = []
    for part, scale in zip(parts, scales, strict=True):
        axes = part.subplots()
        known = published(name) if scale == "paper" else []
        panel(axes, name, [cell for cell in ours if cell.scale == scale], known)
        axes.set_title(f"{LAYOUTS[name].title.partition(',')[0]}, {scale} scale", loc="left", fontsize=10)
        legend = part.legend(loc="outside lower left", fontsize=8, frameon=False)
        lines = [text.get_text().count("\n") + 1 for text in legend.get_texts()]
        heights.append(3.6 + 0.14 * sum(lines) + 0.06 * len(lines))
    figure.set_size_inches(4.6, max(heights) * len(scales))
    return figure


def panel(axes: Axes, name: str, ours: Sequence[Cell], known: Sequence[Cell]) -> None:
    """Draw one scale: a curve per row, data set and recipe, and the published curves."""
    columns = sorted({cell.column for cell in [*ours, *known]}, key=position)
    series: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in ours:
        series[f"{cell.row}, {cell.dataset}", aside(name, cell)].append(cell)
    names = [short for short, _ in series]
    for (short, rest), points in series.items():
        label = short if names.count(short) == 1 else f"{short}, {rest}"
        label = "\n".join(plain(part) for part in textwrap.wrap(label, LONGEST))
        points.sort(key=lambda cell: position(cell.column))
        spreads = [point.ours for point in points if point.ours]
        bars = [[s.mean - s.low for s in spreads], [s.high - s.mean for s in spreads]]
        at = [columns.index(point.column) for point in points]
        means = [s.mean for s in spreads]
        axes.errorbar(at, means, yerr=bars, marker="o", markersize=4, capsize=3, label=label)
    for row in ROWS[name]:
        of_row = sorted((cell for cell in known if cell.row == row), key=lambda cell: position(cell.column))
        numbers = [(columns.index(cell.column), cell.published.value) for cell in of_row if cell.published]
        if numbers:
            axes.plot(*zip(*numbers, strict=True), linestyle="--", marker=".", label=f"{row}, published")
    ticks = ["\n".join(textwrap.wrap(column, TICK)) for column in columns]
    turned = len(ticks) * max(len(line) for tick in ticks for line in tick.split("\n")) > WIDEST
    axes.set_xticks(range(len(columns)), ticks, rotation=90 if turned else 0)
    axes.set_xlabel(LAYOUTS[name].column_title)
    axes.set_ylabel("top-1 %")
    axes.grid(alpha=0.3)


def aside(name: str, cell: Cell) -> str:
    """Return what the points of one curve share beside row and data set.

    These are the backbone and the pretraining without what the figure varies.
    """
    result = cell.runs[0].record.result
    found = pretraining(result)
    if found is None or name == "figure 9":
        return f"{result.backbone}, {result.pretrain}"
    other = f"{found.epochs} ep" if name == "figure 5" else found.hidden.partition(",")[0]
    return f"{result.backbone}, {found.target}, {other}"


def position(column: str) -> tuple[float, str]:
    """Return where a column stands on the axis.

    Columns are sorted by number. "half" a block lies between 0 and 1, "all" is last.
    """
    number = re.match(r"[\d.]+", column)
    return (float(number[0]) if number else {"half": 0.5, "all": 1e9}.get(column, 1e8), column)


def save(found: Sequence[Measurement], folder: Path) -> list[Path]:
    """Draw every figure that has results into the folder, as svg; return the files."""
    return write({name.replace(" ", "_"): figure for name in FIGURES if (figure := draw(name, found))}, folder)


def write(drawn: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures by name into a folder, as svg; return the files."""
    files = {folder / f"{name}.svg": figure for name, figure in drawn.items()}
    for path, figure in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
    return list(files)


def plain(label: str) -> str:
    """Return a label that matplotlib prints as it is: "$" begins no formula, "_" does not hide it from the legend."""
    return ("\u200b" if label.startswith("_") else "") + shortened(label).replace("$", r"\$")


def shortened(label: str) -> str:
    """Return a label that a chart has room for."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def svg(figure: Figure, *, prefix: str) -> str:
    """Return a figure as an <svg> element that scales with the page and takes its text colour.

    Args:
        prefix: keeps its ids apart from those of other figures.
    """
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no element that HTML has not
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    whole = text.getvalue()
    whole = whole[whole.index("<svg") :].replace(INK, "currentColor")
    whole = re.sub(r' (d|x|y|transform|points)="[^"]+"', lambda attribute: _rounded(attribute[0]), whole)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", whole)


def _rounded(attribute: str) -> str:
    """Return coordinates with two decimals, which is a fraction of a pixel."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute)
