"""One page that holds a suite: report.html, tables with the origin of every number, figures, curves, drawings and cost. It needs no other file."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined
from rich.console import Console

from mae_transfer.results import Result
from mae_transfer.suite import figures, pictures, records, summary, tables
from mae_transfer.suite.grid import slug
from mae_transfer.suite.layouts import LAYOUTS
from mae_transfer.suite.records import Note, Record, read_note, write_whole
from mae_transfer.suite.schema import SuiteConfig
from mae_transfer.suite.tables import Cells, Line
from mae_transfer.suite.work import Work

TEMPLATE = Path(__file__).with_name("report.html.j2")
PAPER = "This suite ran at the paper's scale."
SMALLER = "Nothing here reproduces the paper: these runs are of scale {}. Published numbers stand beside runs at the paper's scale only."


MIXED = "Some of these runs are of scale {}, and reproduce nothing. Published numbers stand beside runs at the paper's scale only."


class Origin(NamedTuple):
    """Where a number comes from."""

    result: Result
    note: Note | None
    facts: dict[str, str]
    command: str
    config: str  # the anchor of the run's resolved config on the page


class Row(NamedTuple):
    """A line of a table, with the origins of its number."""

    line: Line
    cells: Cells
    origins: list[Origin]


class Sheet(NamedTuple):
    """A table of the page."""

    anchor: str
    title: str
    column_title: str
    rows: list[Row]
    differences: list[Cells]

    @property
    def compared(self) -> bool:
        """Whether any line has a published number."""
        return any(row.line.published for row in self.rows)


def publish(cfg: SuiteConfig, work: Work, console: Console, *, known: Collection[str]) -> list[str]:
    """Print the suite's summary and write its report, WORK_DIR/report.html; return the expectations of the suite that do not hold.

    Nothing is printed where there are no results yet. Only a whole suite is judged, not a part of it or a trial.

    known: the names of all runs of the suite.
    """
    if not any(work.root.rglob("results.jsonl")):
        return []
    found, damaged = records.load([work.root])
    found, wrong = tables.usable(found)
    gone = sorted({record.note.name for record in found if record.note and record.note.name not in known})
    wrong += [
        f"{work.folder(name)}: no run of the suite any more, yet in its tables: move the folder away" for name in gone
    ]
    for defect in [*damaged, *wrong]:
        console.print(defect, markup=False, highlight=False)
    overview = summary.summarise(cfg, found)
    judged = summary.verdicts(overview, () if work.debug or len(work.plan) < len(known) else cfg.expect)
    summary.show(overview, judged, console)
    path = work.root / "report.html"
    write(path, cfg.title, cfg.tables, found, [*damaged, *wrong], work.root)
    console.print(f"Report: {path}   Tables: python tools/tables.py {work.root}", markup=False, highlight=False)
    return [verdict.sentence for verdict in judged if not verdict.holds]


def refresh(cfg: SuiteConfig, work: Work) -> None:
    """Write the report of the results that there are so far; nothing where there are none."""
    if any(work.root.rglob("results.jsonl")):
        found, damaged = records.load([work.root])
        found, wrong = tables.usable(found)
        write(work.root / "report.html", cfg.title, cfg.tables, found, [*damaged, *wrong], work.root)


def write(
    path: Path, title: str, names: Sequence[str], found: Sequence[Record], defects: Sequence[str], root: Path
) -> None:
    """Write the report of the records under `root`, with the tables of these names."""
    runs = notes_of(root)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    with mpl.rc_context(pictures.STYLE):  # to be read on a light page and on a dark one
        drawn = [
            pictures.Picture(LAYOUTS[name].title, pictures.svg(figure, prefix=slug(name)))
            for name in figures.FIGURES
            if (figure := figures.draw(name, found))
        ]
    values: dict[str, Any] = {
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "warning": warning({record.result.scale for record in found}),
        "defects": defects,
        "sheets": list(sheets(names, found)),
        "figures": drawn,
        "curves": list(pictures.curves(runs)),
        "drawings": list(pictures.drawings({folder: note for folder, note in runs.items() if note.role != "point"})),
        "runs": [run_of(folder, note, found) for folder, note in runs.items()],
        "chosen": [note for note in runs.values() if note.chosen],
        "hours": sum(note.seconds for note in runs.values()) / 3600,
    }
    write_whole(path, page.render(values))


def warning(scales: Set[str]) -> str:
    """Return what a reader has to know before any number."""
    smaller = " and ".join(sorted(scales - {"paper"}))
    if not smaller:
        return PAPER
    return (MIXED if "paper" in scales else SMALLER).format(smaller)


def notes_of(root: Path) -> dict[Path, Note]:
    """Return the runs of a suite's folder."""
    folders = sorted(path.parent for path in root.rglob("node.json") if ".replaced" not in path.parts)
    return {folder: note for folder in folders if (note := read_note(folder)[0]) is not None}


def sheets(names: Sequence[str], found: Sequence[Record]) -> Iterator[Sheet]:
    """Yield the tables that have anything to show; published numbers alone are shown where a run is at the paper's scale."""
    paper = any(record.result.scale == "paper" for record in found)
    for name in names:
        shown = [line for line in tables.lines(name, found) if paper or line.scale]
        rows = [Row(line, tables.cells(line), [origin(record) for record in line.records]) for line in shown]
        if rows:
            yield Sheet(
                slug(LAYOUTS[name].title.partition(":")[0]),
                LAYOUTS[name].title,
                LAYOUTS[name].column_title,
                rows,
                tables.differences(name, found),
            )


def origin(record: Record) -> Origin:
    """Return where a record's number comes from."""
    result, note = record.result, record.note
    facts = {
        "run": result.run, "value": f"{result.value:.6g} {result.unit}", "seed": str(result.seed), "date": result.created_at,
        "checkpoint sha256": result.checkpoint_sha256 or "none: a fresh backbone", "commit": ", ".join(result.revisions) or "not recorded",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()), "device": result.device,
        "devices": str(result.world_size), "precision": result.precision,
        "wall time": f"{result.wall_s:.0f} s", "config digest": result.config_digest,
        "file": str(record.file),
    }  # fmt: skip
    name = note.name if note else str(record.file.parent)
    return Origin(result, note, facts, shlex.join(note.command) if note else "", f"run-{slug(name)}")


def run_of(folder: Path, note: Note, found: Sequence[Record]) -> dict[str, Any]:
    """Return what the list of runs says of one: how it ended, what it cost, its resolved config."""
    result = next((record.result for record in found if record.file.parent == folder.resolve()), None)
    config = folder / "config.py"
    return {
        "anchor": f"run-{slug(note.name)}",
        "note": note,
        "command": shlex.join(note.command),
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
        "cost": cost(note, result),
    }


def cost(note: Note, result: Result | None) -> dict[str, str]:
    """Return the figures of the table of costs."""
    if result is None or result.status != "ok":
        return {
            "minutes": f"{note.seconds / 60:.1f}",
            "images/s": "-",
            "params": "-",
            "GFLOPs/image": "-",
            "memory GiB": "-",
            "device": "-",
        }
    flops, memory = result.flops_per_image, result.peak_mem_gib
    return {
        "minutes": f"{note.seconds / 60:.1f}", "images/s": f"{result.images_per_s:.0f}", "params": f"{result.params / 1e6:.2f} M",
        "GFLOPs/image": f"{flops / 1e9:.2f}" if flops else "-", "memory GiB": f"{memory:.2f}" if memory else "-",
        "device": f"{result.world_size} x {result.device}",
    }  # fmt: skip
