"""Figures 5, 7 and 9 as plots: the published curve, and yours with the range over seeds wherever they were measured."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mae_transfer.suite.layouts import LAYOUTS
from mae_transfer.suite.names import method
from mae_transfer.suite.places import ROWS
from mae_transfer.suite.records import Record
from mae_transfer.suite.tables import Line, lines

FIGURES = ("figure 5", "figure 7", "figure 9")


def draw(name: str, found: Sequence[Record]) -> Figure | None:
    """Return a figure; None where there are no results for it. Yours and the published curve share an axis only at the paper's scale."""
    rows = lines(name, found)
    ours = [line for line in rows if line.ours]
    if not ours:
        return None
    scales = sorted({line.scale for line in ours})
    figure = Figure(figsize=(6.4 * len(scales), 4.2), layout="constrained")
    panels = figure.subplots(1, len(scales), squeeze=False)[0]
    for axes, scale in zip(panels, scales, strict=True):
        published = [line for line in rows if line.published] if scale == "paper" else []
        panel(axes, name, [line for line in ours if line.scale == scale], published)
        axes.set_title(f"{LAYOUTS[name].title.partition(',')[0]}, {scale} scale", loc="left", fontsize=10)
    return figure


def panel(axes: Axes, name: str, ours: Sequence[Line], published: Sequence[Line]) -> None:
    """Draw one scale: a curve per row, data set and recipe."""
    columns = sorted({line.column for line in [*ours, *published]}, key=position)
    series: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in ours:
        series[f"{line.row}, {line.dataset}", aside(name, line)].append(line)
    names = [short for short, _ in series]
    for (short, rest), points in series.items():
        label = short if names.count(short) == 1 else f"{short}, {rest}"
        points.sort(key=lambda line: position(line.column))
        summaries = [point.ours for point in points if point.ours]
        means = [s.mean for s in summaries]
        bars = [[s.mean - s.low for s in summaries], [s.high - s.mean for s in summaries]]
        axes.errorbar(
            [columns.index(p.column) for p in points],
            means,
            yerr=bars,
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )
    for row in ROWS[name]:
        known = sorted((p for p in published if p.row == row), key=lambda line: position(line.column))
        numbers = [(columns.index(p.column), p.published.value) for p in known if p.published]
        if numbers:
            axes.plot(*zip(*numbers, strict=True), linestyle="--", marker=".", label=f"{row}, published")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel(LAYOUTS[name].column_title)
    axes.set_ylabel("top-1 %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def aside(name: str, line: Line) -> str:
    """Return what the points of one curve share beside row and data set: backbone and pretraining, but for what the figure varies."""
    result = line.records[0].result
    found = method(result.pretrain)
    if found is None or name == "figure 9":
        return f"{result.backbone}, {result.pretrain}"
    parts = [found.target, f"{found.epochs} ep"] if name == "figure 5" else [found.target, found.hidden]
    return ", ".join([result.backbone, *parts])


def position(column: str) -> tuple[float, str]:
    """Return where a column stands on the axis: by its number; "half" a block lies between 0 and 1, "all" at the end."""
    number = re.match(r"[\d.]+", column)
    return (float(number[0]) if number else {"half": 0.5, "all": 1e9}.get(column, 1e8), column)


def save(found: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every figure that has results into the folder, as svg; return the files."""
    drawn = {name: figure for name in FIGURES if (figure := draw(name, found))}
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{name.replace(' ', '_')}.svg": figure for name, figure in drawn.items()}
    for path, figure in files.items():
        figure.savefig(path)
    return list(files)
