"""The pictures of a report: curves of every run as SVG, and the drawings that the runs left.

They are small enough to be carried in one file.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from mae_transfer.ablations import slug
from mae_transfer.draw.curves import is_shown
from mae_transfer.suite.store.records import Note
from mae_transfer.suite.tables.figures import STYLE, plain, svg

FOLDERS = {
    "reconstructions": (
        "Reconstructions",
        "From left to right: the image, its visible patches, the prediction, the prediction with the visible patches. "
        "Predictions of normalised pixels are shown with the mean and variance of the image's own hidden patches.",
    ),
    "detections": ("Detections", "Left: the annotated objects. Right: detections, or the best guess if none is sure."),
    "segmentations": ("Segmentations", "From left to right: the image, the annotation, the prediction."),
}
"""Folder of a run -> title and caption of its pictures."""
WIDTH = 900  # pixels of a drawing in the report


class Picture(NamedTuple):
    """A picture with what it shows, as an element of a page."""

    title: str
    element: str  # <svg> or <img>


class Curve(NamedTuple):
    """What a run logged."""

    label: str  # the suite's row, or the pretraining itself where several share a row
    steps: tuple[int, ...]
    values: tuple[float, ...]


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return a colour per row, the same in every chart of a report."""
    return {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys(names))}


def curves(runs: Mapping[Path, Note], colours: Mapping[str, str]) -> Iterator[Picture]:
    """Yield a picture per kind of run and quantity: the training loss, and every figure that was measured repeatedly.

    Args:
        runs: the suite's runs by folder.
        colours: of the rows; other curves take the colours after these.
    """
    found: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    sources: dict[str, set[str]] = defaultdict(set)
    for note in runs.values():
        sources[note.row].add(note.name.split("/")[0])
    labels = {
        note.name: note.row if len(sources[note.row]) == 1 else note.name.split("/")[0] for note in runs.values()
    }  # one row of several sizes
    for folder, note in runs.items():
        kind = note.name.split("/")[1] if "/" in note.name else note.name
        for quantity, (steps, values) in logged(folder / "log.jsonl").items():
            if len(steps) > 1:
                found[kind, quantity].append(Curve(labels[note.name], tuple(steps), tuple(values)))
    missing = palette(label for label in [*colours, *labels.values()])
    colours = missing | dict(colours)
    for (kind, quantity), lines in sorted(found.items()):
        used = tuple((line.label, colours[line.label]) for line in lines)
        yield _curves(f"{kind}: {quantity}", tuple(lines), quantity, used)


@lru_cache(maxsize=256)
def _curves(title: str, lines: tuple[Curve, ...], quantity: str, colours: tuple[tuple[str, str], ...]) -> Picture:
    """Draw curves; those that have not changed since the last report are not drawn again."""
    return Picture(title, svg(plot(lines, quantity, dict(colours)), prefix=slug(title)))


def logged(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of what a log.jsonl holds, by quantity; lines that cannot be read are left out."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            continue
        training, monitored = (row.get("kind") == kind for kind in ("train", "monitor"))
        for name in ["loss"] if training else [name for name in row if name not in ("kind", "step", "epoch")]:
            if monitored and not is_shown(name):
                continue
            if isinstance(row.get(name), float):
                steps, values = series["training loss" if training else name]
                steps.append(row["step"])
                values.append(row[name])
    return series


def plot(lines: Sequence[Curve], quantity: str, colours: Mapping[str, str]) -> Figure:
    """Return a plot of some curves over steps, in the colour of their row, which its seeds share."""
    counts = Counter(line.label for line in lines)
    names = {label: plain(f"{label}, {count} seeds" if count > 1 else label) for label, count in counts.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.7 + 0.17 * len(names)), layout="constrained")
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
        # outside the axes: to find a free place among long curves takes seconds
        figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    return figure


def drawings(runs: Mapping[Path, Note], *, each: int = 2) -> Iterator[tuple[str, str, list[Picture]]]:
    """Yield title, caption and drawings: the newest reconstructions, the first detections and segmentations.

    Of runs that differ in their seed only the first is shown.
    """
    for name, (title, caption) in FOLDERS.items():
        shown: dict[str, Picture] = {}
        for folder, note in runs.items():
            files = sorted((folder / name).glob("*.png"))
            run = note.name.rpartition("/")[0] or note.name
            if files and run not in shown:
                some = files[-1:] if name == "reconstructions" else files[:each]
                alt = f"{title}: {note.name}, "
                images = "\n".join(image(path, alt=alt + path.stem) for path in some)
                shown[run] = Picture(f"{note.row}, {steps_of(some[0])}" if len(some) == 1 else note.row, images)
        if shown:
            yield title, caption, list(shown.values())


def steps_of(path: Path) -> str:
    """Return "step 1920" for step_00001920.png; other names as they are."""
    word, _, number = path.stem.partition("_")
    return f"{word} {int(number):,}" if number.isdigit() else path.stem


def image(path: Path, *, alt: str) -> str:
    """Return a picture file as an <img> element that needs no other file; a sentence if it cannot be read.

    A file that has not changed since the last report is not read again.
    """
    about = path.stat()
    return _image(path, alt, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=256)
def _image(path: Path, alt: str, mtime_ns: int, size: int) -> str:
    data = io.BytesIO()
    try:
        with Image.open(path) as opened:
            small = opened.convert("RGB")
            small.thumbnail((WIDTH, 4 * WIDTH))
            small.save(data, "WEBP", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises each of them
        return f"<p>{escape(alt)} cannot be read: {escape(str(error))}</p>"
    coded = base64.b64encode(data.getvalue()).decode()
    shape = f'width="{small.width}" height="{small.height}"'
    return f'<img src="data:image/webp;base64,{coded}" {shape} alt="{escape(alt)}">'
