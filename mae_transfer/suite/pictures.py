"""The pictures of a report: curves of every run as SVG, and the drawings that the runs left, small enough to be carried in one file."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from mae_transfer.suite.grid import slug
from mae_transfer.suite.records import Note

FOLDERS = {"reconstructions": "Reconstructions", "detections": "Detections", "segmentations": "Segmentations"}
WIDTH = 1000  # pixels of a drawing in the report
INK = "#7a7a7a"  # of text and axes: readable on white and on black
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


class Picture(NamedTuple):
    """A picture with what it shows, as an element of a page."""

    title: str
    element: str  # <svg> or <img>


class Curve(NamedTuple):
    """What a run logged."""

    label: str  # the suite's row, or the pretraining itself where several share a row
    steps: list[int]
    values: list[float]


def curves(runs: Mapping[Path, Note]) -> Iterator[Picture]:
    """Yield a picture per kind of run and quantity: the training loss, and every figure that was measured more than once."""
    found: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    sources: dict[str, set[str]] = defaultdict(set)
    for note in runs.values():
        sources[note.row].add(note.name.split("/")[0])
    labels = {
        note.name: note.row if len(sources[note.row]) == 1 else note.name.split("/")[0] for note in runs.values()
    }  # one row of several sizes
    for folder, note in runs.items():
        kind = note.name.split("/")[1]
        for quantity, (steps, values) in logged(folder / "log.jsonl").items():
            if len(steps) > 1:
                found[kind, quantity].append(Curve(labels[note.name], steps, values))
    colours = {
        label: f"C{number % 10}" for number, label in enumerate(dict.fromkeys(labels.values()))
    }  # the same in every picture
    for (kind, quantity), lines in sorted(found.items()):
        yield Picture(f"{kind}: {quantity}", svg(plot(lines, quantity, colours), prefix=slug(f"{kind} {quantity}")))


def logged(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of what a log.jsonl holds, by quantity; lines that were cut short are left out."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        names = (
            ["loss"] if row.get("kind") == "train" else [name for name in row if name not in ("kind", "step", "epoch")]
        )
        for name in names:
            if isinstance(row.get(name), float):
                series["training loss" if row["kind"] == "train" else name][0].append(row["step"])
                series["training loss" if row["kind"] == "train" else name][1].append(row[name])
    return series


def plot(lines: Sequence[Curve], quantity: str, colours: Mapping[str, str]) -> Figure:
    """Return a plot of some curves over steps, in the colour of their row, which its seeds share."""
    counts = Counter(line.label for line in lines)
    names = {label: f"{label}, {count} seeds" if count > 1 else label for label, count in counts.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            style: Any = {"marker": "o", "markersize": 3} if len(line.steps) < 20 else {}
            axes.plot(
                line.steps,
                line.values,
                label=names.pop(line.label, None),
                color=colours[line.label],
                linewidth=1.2,
                **style,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def svg(figure: Figure, *, prefix: str) -> str:
    """Return a figure as an <svg> element without a background, that scales with the page; `prefix` keeps its ids apart from other figures'."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )  # no element that HTML has not
    whole = text.getvalue()
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", whole[whole.index("<svg") :])


def drawings(runs: Mapping[Path, Note], *, each: int = 2) -> Iterator[Picture]:
    """Yield the newest drawings of every run: what it makes of some images."""
    for name, title in FOLDERS.items():
        for folder, note in runs.items():
            for path in sorted((folder / name).glob("*.png"))[-each if name != "reconstructions" else -1 :]:
                yield Picture(f"{title}: {note.name}, {path.stem}", image(path, alt=f"{title} of {note.name}"))


def image(path: Path, *, alt: str) -> str:
    """Return a picture file as an <img> element that needs no other file."""
    with Image.open(path) as opened:
        small = opened.convert("RGB")
        small.thumbnail((WIDTH, 4 * WIDTH))
        data = io.BytesIO()
        small.save(data, "JPEG", quality=85)
    coded = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{coded}" width="{small.width}" height="{small.height}" alt="{alt}" id="{slug(alt)}-{path.stem}">'
