"""One page that holds a suite: report.html. It needs no other file.

In this order: what was run, the summary, a chart per task, the tables, figures, curves, pictures, runs with their
cost, and how each number came to be.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined, Template
from rich.console import Console

from mae_transfer.ablations import slug
from mae_transfer.locks import locked
from mae_transfer.results import Result
from mae_transfer.suite.graph.schema import SuiteConfig
from mae_transfer.suite.report import pictures
from mae_transfer.suite.report.origins import Origins, earlier, hours_by_device
from mae_transfer.suite.store import records
from mae_transfer.suite.store.records import Measurement, Note, read_note, write_whole
from mae_transfer.suite.store.work import Work
from mae_transfer.suite.tables import claims, comparison, figures, formats, sheets, summary
from mae_transfer.suite.tables.cells import Cell
from mae_transfer.suite.tables.comparison import Table, full_name
from mae_transfer.suite.tables.layouts import LAYOUTS
from mae_transfer.suite.tables.summary import Summary, Verdict

LOCK = ".report.lock"  # of the process that writes the report: the suite, or one of its jobs
TEMPLATE = Path(__file__).with_name("page.html.j2")
PAPER = "This suite ran at the paper's scale."
SMALLER = (
    "Nothing here reproduces the paper: these runs are of scale {}. "
    "Published numbers stand beside runs at the paper's scale only."
)
MIXED = (
    "Some of these runs are of scale {}, and reproduce nothing. "
    "Published numbers stand beside runs at the paper's scale only."
)
USES = {"train": "training of", "val": "evaluation of", "holdout": "selection in"}
"""What a part of the data is for."""
COSTS = (
    "minutes", "training s", "evaluation s", "saving s", "images/s", "GFLOPs/image", "memory GiB", "device",
)  # fmt: skip
BASELINE_COLOUR = "#8a8a8a"  # of random weights


class RunLink(NamedTuple):
    """One value behind a number."""

    label: str
    text: str
    anchor: str  # of the entry that says how it came to be


def publish(cfg: SuiteConfig, work: Work, console: Console, *, known: Collection[str]) -> list[str]:
    """Print the suite's summary and write its report, WORK_DIR/report.html; return the expectations that do not hold.

    Nothing is printed where there are no results yet. Only a whole suite is judged, not a part of it or a trial.

    Args:
        cfg: the suite.
        work: its folder.
        console: where the summary is printed.
        known: the names of all runs of the suite.
    """
    if not any(work.root.rglob("results.jsonl")):
        return []
    with locked(work.root / LOCK):
        found, damaged = records.load([work.root])
        found, wrong = comparison.usable(found)
        gone = sorted({record.note.name for record in found if record.note and record.note.name not in known})
        wrong += [
            f"{work.folder(name)}: no run of the suite any more, yet in its tables: move the folder away"
            for name in gone
        ]
        for defect in [*damaged, *wrong]:
            console.print(defect, markup=False, highlight=False)
        overview = summary.summarise(cfg, found)
        judged = summary.verdicts(overview, () if work.debug or len(work.plan) < len(known) else cfg.expect)
        claimed = [] if work.debug else claims.judge(found, cfg.about())
        for sheet in claims.sheets(claimed):
            if not sheet.paired:
                formats.draw(sheet, console)
        summary.show(overview, judged, console)
        path = work.root / "report.html"
        write(path, cfg, found, [*damaged, *wrong], judged=judged, claimed=claimed)
        console.print(f"Report: {path}   Tables: python tools/tables.py {work.root}", markup=False, highlight=False)
    return [verdict.sentence for verdict in judged if not verdict.holds]


def refresh(cfg: SuiteConfig, work: Work) -> None:
    """Write the report of the results that there are so far; nothing where there are none."""
    if not any(work.root.rglob("results.jsonl")):
        return
    with locked(work.root / LOCK):
        found, damaged = records.load([work.root])
        found, wrong = comparison.usable(found)
        overview = summary.summarise(cfg, found)
        numbers = {(row, column) for row, cells in overview.rows.items() for column in cells}
        ready = [one for one in cfg.expect if {(row, one.column) for row in (one.row, one.above) if row} <= numbers]
        judged = summary.verdicts(overview, [] if work.debug else ready)
        notes = [read_note(work.folder(name))[0] for name in work.plan]
        left = sum(note is None or note.state in ("planned", "running") for note in notes)
        claimed = [] if work.debug else claims.judge(found, cfg.about())
        write(work.root / "report.html", cfg, found, [*damaged, *wrong], judged=judged, claimed=claimed, left=left)


def write(
    path: Path,
    cfg: SuiteConfig,
    found: Sequence[Measurement],
    defects: Sequence[str],
    *,
    judged: Sequence[Verdict] = (),
    claimed: Sequence[claims.JudgedClaim] = (),
    left: int = 0,
) -> None:
    """Write the report of a suite.

    Args:
        path: the page; the suite's runs are in the same folder.
        cfg: the suite.
        found: its results.
        defects: what could not be read, or was left out.
        judged: whether the numbers are as the suite expects.
        claimed: its claims with their verdicts.
        left: number of runs that have not ended.
    """
    folders = sorted(file.parent for file in path.parent.rglob("node.json") if ".replaced" not in file.parts)
    runs = {folder: note for folder in folders if (note := read_note(folder)[0]) is not None}
    origins = Origins(found, runs, path.parent)
    overview = summary.summarise(cfg, found)
    some, same = comparison.worth_printing(found, about=cfg.about())
    some = [table for table in some if table.name != "summary"]
    colours = pictures.palette(name for name in overview.rows if name != overview.baseline)
    colours |= {overview.baseline: BASELINE_COLOUR} if overview.baseline else {}
    first = {folder: note for folder, note in runs.items() if note.role != "point"}
    values: dict[str, Any] = {
        "title": cfg.title,
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "warning": warning({record.result.scale for record in found}),
        "about": list(about(cfg, found, runs, left)),
        "defects": defects,
        "summary": [*claims.sheets(claimed), *sheets.sheets(overview.tables)],
        "sentences": summary.sentences(overview),
        "judged": judged,
        "charts": [*claim_charts(claimed), *charts(overview, some, colours)],
        "tables": sheets.sheets(some),
        "links": partial(links_of, origins=origins),
        "same": same,
        "figures": paper_figures(found),
        "curves": list(pictures.curves(runs, colours)),
        "drawings": list(pictures.drawings(first)),
        "chosen": [note for note in runs.values() if note.chosen],
        "runs": run_list(runs, found, origins),
        "origins": origins.all,
        "titles": {origin.anchor: origin.title for origin in origins.all},
        "recipes": origins.recipes,
    }
    write_whole(path, _template().render(values))


@cache
def _template() -> Template:
    rules = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rules.filters["slug"] = slug
    return rules.from_string(TEMPLATE.read_text(encoding="utf-8"))


def warning(scales: Set[str]) -> str:
    """Return what a reader has to know before any number."""
    smaller = " and ".join(sorted(scales - {"paper"}))
    if not smaller:
        return PAPER
    return (MIXED if "paper" in scales else SMALLER).format(smaller)


def about(
    cfg: SuiteConfig, found: Sequence[Measurement], runs: Mapping[Path, Note], left: int
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what was run: title and lines."""
    started = [note.row for note in runs.values() if note.role in ("pretrain", "transfer")]
    yield "compared", [", ".join(dict.fromkeys([*cfg.about().rows, *started]))]
    yield "transfers", [", ".join(cfg.transfer)]
    seeds = ", ".join(map(str, cfg.seeds))
    each = "each with its own pretrainings" if cfg.pretrain_seeds == "each" else "one pretraining serves all"
    yield "seeds", [f"{seeds} ({each})" if len(cfg.seeds) > 1 else seeds]
    if lines := data_lines(found):
        yield "data", lines
    states = Counter(note.state for note in runs.values() if note.state not in ("planned", "running"))
    counts = [f"{count} {state}" for state, count in sorted(states.items())] + ([f"{left} to come"] if left else [])
    yield "runs", [", ".join(counts)]
    devices = hours_by_device(found)
    if devices:
        yield "training", [f"{hours:.3g} h on {device}" for device, hours in devices.items()]
    if len(devices) < 2:  # hours of different devices are never added
        wall = sum(note.seconds for note in runs.values()) / 3600
        yield "all runs", [f"{wall:.3g} h, start-up, evaluation and saving included"]


def data_lines(found: Sequence[Measurement]) -> list[str]:
    """Return the data sets with what they were used for; of results of an earlier version only the name is known."""
    uses: dict[tuple[str, str], dict[str, None]] = {}
    for one in sorted(found, key=lambda one: one.result.created_at):
        record = one.result.record
        if earlier(one.result):
            uses.setdefault((f"'{one.result.dataset}' (not recorded)", "used by"), {})[one.result.task] = None
        elif record is not None:
            for part, data in record.data.items():
                uses.setdefault((data.text(), USES.get(part, part)), {})[record.task] = None
    return [f"{text}: {use} {', '.join(tasks)}" for (text, use), tasks in uses.items()]


def links_of(cell: Cell | None, origins: Origins) -> list[RunLink]:
    """Return the values behind a number, each with the entry that says how it came to be."""
    runs = cell.runs if cell else ()
    unit = cell.unit if cell else ""
    seeds = Counter(run.seed for run in runs)
    return [
        RunLink(
            f"seed {run.seed}" if seeds[run.seed] == 1 else f"seed {run.seed}, pretraining seed {run.pretraining_seed}",
            f"{run.value:.2f}" if unit == "%" else f"{run.value:.4g}",
            origins.anchor(run.record),
        )
        for run in runs
    ]


def claim_charts(claimed: Iterable[claims.JudgedClaim]) -> Iterator[pictures.Picture]:
    """Yield the paired differences of each claim that has any."""
    with mpl.rc_context(figures.STYLE):
        for number, claim in enumerate(claimed, start=1):
            if figure := claims.figure(claim):
                title = f"{number}. {claim.words}: {claim.verdict}"
                yield pictures.Picture(title, figures.svg(figure, prefix=slug(claim.words)))


def charts(overview: Summary, some: Iterable[Table], colours: Mapping[str, str]) -> Iterator[pictures.Picture]:
    """Yield a bar chart per scale and column of the summary, with the published numbers of other tables."""
    beside = published_beside(some)
    for table in overview.tables:
        for column in table.columns:
            rows = []
            for row in table.own:
                cell = row.cells.get(column)
                if cell is not None and cell.ours is not None:
                    marks = tuple(dict.fromkeys(v for run in cell.runs for v in beside.get(id(run.record.result), ())))
                    mean, _, low, high, n = cell.ours
                    colour = colours.get(row.name, BASELINE_COLOUR)
                    rows.append(figures.Bar(full_name(row), mean, low, high, n, colour, marks))
            if rows:
                title = column if len(overview.tables) == 1 else f"{column}, {table.own[0].cells[column].scale} scale"
                yield _chart(title, tuple(rows), overview.chance.get(column))


@lru_cache(maxsize=256)
def _chart(title: str, rows: tuple[figures.Bar, ...], chance: float | None) -> pictures.Picture:
    """Draw a bar chart; one that has not changed since the last report is not drawn again."""
    with mpl.rc_context(figures.STYLE):
        figure = figures.bars(rows, unit="%", chance=chance)
        return pictures.Picture(title, figures.svg(figure, prefix=slug(f"chart {title}")))


def published_beside(some: Iterable[Table]) -> dict[int, list[float]]:
    """Return the published numbers that each result stands beside in some tables, by the result's id()."""
    marks: dict[int, list[float]] = {}
    for cell in (cell for table in some for row in table.own for cell in row.cells.values()):
        for run in cell.runs if cell.published else ():
            assert cell.published is not None
            marks.setdefault(id(run.record.result), []).append(cell.published.value)
    return marks


def paper_figures(found: Sequence[Measurement]) -> list[pictures.Picture]:
    """Return the paper's figures that have results."""
    with mpl.rc_context(figures.STYLE):
        return [
            pictures.Picture(LAYOUTS[name].title, figures.svg(figure, prefix=slug(name)))
            for name in figures.FIGURES
            if (figure := figures.draw(name, found))
        ]


def run_list(runs: Mapping[Path, Note], found: Sequence[Measurement], origins: Origins) -> dict[str, list[Any]]:
    """Return the runs with what each cost: columns, rows (anchor, note, last alarm, cost) and notes.

    A column that no run has is left out. A device that all runs share is a note.
    """
    first: dict[Path, Result] = {}
    for one in found:
        first.setdefault(one.file.parent, one.result)
    costs = [cost(note, first.get(folder.resolve())) for folder, note in runs.items()]
    devices = {figure["device"] for figure in costs} - {"-"}
    notes = [f"All runs used {device}." for device in devices if len(devices) == 1]
    notes += ["Minutes are those of the whole process."]
    if any(map(earlier, first.values())):
        notes += ["Images per second of an earlier version include evaluation."]
    columns = [name for name in COSTS if any(figure[name] != "-" for figure in costs)]
    columns = [name for name in columns if name != "device" or len(devices) > 1]
    rows = [
        (origins.of_folder(folder), note, last_alarm(folder / "log.jsonl"), [figure[name] for name in columns])
        for (folder, note), figure in zip(runs.items(), costs, strict=True)
    ]
    return {"columns": columns, "rows": rows, "notes": notes}


def last_alarm(path: Path) -> str:
    """Return the last alarm in a log.jsonl, "" if there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    alarms = [line for line in lines if line.startswith('{"kind": "alarm"') and line.endswith("}")]
    return str(json.loads(alarms[-1])["words"]) if alarms else ""


def cost(note: Note, result: Result | None) -> dict[str, str]:
    """Return what a run cost, by column."""
    known = dict.fromkeys(COSTS, "-") | {"minutes": f"{note.seconds / 60:.1f}"}
    if result is None or result.status != "ok":
        return known
    if record := result.record:
        spent = [sitting.seconds for sitting in record.sittings]
        known["training s"] = f"{record.train_seconds:.0f}"
        known["evaluation s"] = f"{sum(seconds.evaluate for seconds in spent):.0f}"
        known["saving s"] = f"{sum(seconds.save for seconds in spent):.1f}"
    flops, memory = result.flops_per_image, result.peak_mem_gib
    return known | {
        "images/s": f"{result.images_per_s:.0f}",
        "GFLOPs/image": f"{flops / 1e9:.2f}" if flops else "-",
        "memory GiB": f"{memory:.2f}" if memory else "-",
        "device": f"{result.world_size} x {result.device}",
    }
