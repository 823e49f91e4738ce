"""The paper's tables: published | yours, mean [min..max] (n seeds) | difference | seed spread.

A table is long: one line per pretraining and column. Only a run that did what the published number was measured with is set beside it; every other
line says its scale, so that a mini result cannot be mistaken for a reproduction. Differences are printed beside the seed spread and never judged.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mae_transfer.results import Summary
from mae_transfer.suite.layouts import LAYOUTS
from mae_transfer.suite.names import TARGETS
from mae_transfer.suite.places import COLUMNS, ROWS, Place
from mae_transfer.suite.published import PUBLISHED, Published
from mae_transfer.suite.records import Record

Cells = dict[str, str]
WIDE = ("recipe", "source")  # columns for which a terminal has no room


class Line(NamedTuple):
    """One line of a table."""

    row: str
    column: str
    published: Published | None
    ours: Summary | None
    values: dict[int, float]  # by seed
    unit: str
    scale: str  # of our runs; "" where there are none
    dataset: str
    recipe: str  # pretraining, backbone, epochs, batch
    notes: str  # why there is no number, or what a reader has to know of it
    records: tuple[Record, ...]  # the counted ones


def lines(table: str, found: Sequence[Record]) -> list[Line]:
    """Return the lines of a table: the published numbers with what was run beside them, then what only was run."""
    groups: dict[tuple[object, ...], list[Place]] = defaultdict(list)
    for place in LAYOUTS[table].places(found):
        result = place.record.result
        groups[
            place.row,
            place.column,
            place.why_not,
            result.scale,
            result.dataset,
            recipe(place.record),
            own_name(place),
        ].append(place)
    rows = [Line(p.row, p.column, p, None, {}, p.unit, "", "", "", "", ()) for p in PUBLISHED if p.table == table]
    for group in groups.values():
        line = line_of(group)
        beside = group[0].published if group[0].why_not is None else None
        line = line._replace(published=beside)
        spots = [i for i, row in enumerate(rows) if beside and row.published == beside and row.ours is None]
        if spots:
            rows[spots[0]] = line
        else:
            rows.append(line)
    return in_order(table, told_apart(rows))


def own_name(place: Place) -> str | None:
    """Return what the suite calls a row that the table calls otherwise: two backbones of one method are two lines, not two seeds."""
    return None if place.record.label == place.row else place.record.label


def told_apart(rows: Sequence[Line]) -> list[Line]:
    """Return the lines, with the suite's name and the recipe among the notes where two would else look the same."""

    def look(line: Line) -> tuple[object, ...]:
        return line.row, line.column, line.scale, line.dataset

    alike = Counter(look(line) for line in rows)

    def told(line: Line) -> Line:
        label = line.records[0].label if line.records else None
        return line._replace(
            notes="; ".join(filter(None, (line.notes, label if label != line.row else None, line.recipe)))
        )

    return [told(line) if alike[look(line)] > 1 else line for line in rows]


def in_order(table: str, rows: Sequence[Line]) -> list[Line]:
    """Return what was published first, then what only was run: column by column, the rows in the paper's order."""
    alone = [line for line in rows if line.published is None]
    columns = [*dict.fromkeys([*COLUMNS[table], *(line.column for line in alone)])]
    names = [*dict.fromkeys([*ROWS[table], *TARGETS.values(), *(line.row for line in alone)])]
    return [line for line in rows if line.published] + sorted(
        alone, key=lambda line: (columns.index(line.column), names.index(line.row))
    )


def line_of(group: Sequence[Place]) -> Line:
    """Return the line of the places of one cell: of several results of a seed the newest counts, and a failed one leaves a note."""
    newest: dict[int, Place] = {}
    for place in sorted(group, key=lambda place: (place.record.result.created_at, place.record.result.status == "ok")):
        newest[place.record.result.seed] = place
    good = {seed: p for seed, p in sorted(newest.items()) if p.record.result.status == "ok" and p.value is not None}
    values = {seed: place.value for seed, place in good.items() if place.value is not None}
    place, first = group[0], group[0].record.result
    ours = summary_of(list(values.values())) if values else None
    records = tuple(place.record for place in good.values())
    about = (place.unit, first.scale, first.dataset, recipe(place.record))
    return Line(place.row, place.column, None, ours, values, *about, "; ".join(remarks(group, newest, values)), records)


def summary_of(values: Sequence[float]) -> Summary:
    """Return mean, range and number of some values."""
    return Summary(statistics.fmean(values), min(values), max(values), len(values))


def remarks(group: Sequence[Place], newest: Mapping[int, Place], values: Mapping[int, float]) -> list[str]:
    """Return what a reader has to know of a cell: seeds without a number, seeds that ran more than once, several configs or commits.

    Args:
        newest: the places that count, by seed.
        values: the numbers among them.
    """
    missing = [(seed, place.record.result) for seed, place in newest.items() if seed not in values]
    notes = [f"seed {seed} {result.status}: {result.reason or 'no reason given'}" for seed, result in missing]
    for seed, value in values.items():
        others = sorted(
            {place.value for place in group if place.record.result.seed == seed and place.value not in (None, value)},
            key=float,
        )
        configs = len(
            {place.record.result.recipe_digest for place in group if place.record.result.seed == seed} - {None}
        )
        again = f"under {configs} configs" if configs > 1 else "more than once"
        notes += (
            [f"seed {seed} ran {again}, the newest counts (before: {', '.join(f'{other:.2f}' for other in others)})"]
            if others
            else []
        )
    commits = sorted({one for seed in values for one in newest[seed].record.result.revisions or ("unknown",)})
    recipes = {digest for seed in values if (digest := newest[seed].record.result.recipe_digest)}
    notes += [f"its seeds are of {len(recipes)} different configs"] if len(recipes) > 1 else []
    return notes + ([f"of commits {', '.join(commits)}"] if len(commits) > 1 else [])


def recipe(record: Record) -> str:
    """Return what has to be the same for two results to be two seeds of one number."""
    result = record.result
    length = f"{result.epochs:g} ep x {result.global_batch}" if result.epochs else "no training"
    return (
        f"{result.pretrain}; {result.backbone}; {result.protocol}, {length}"
        if result.task != "pretrain"
        else f"{result.pretrain}; {length}"
    )


def usable(found: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records without those in fractions of one, which would be read a hundred times too small, and a sentence for each of these."""
    wrong = {
        id(
            place.record
        ): f"{place.record.file}: {place.record.result.metric} in {place.record.result.unit!r}, the tables take '%'; left out"
        for layout in LAYOUTS.values()
        for place in layout.places(found)
        if place.unit == "%" and place.record.result.unit != "%"
    }
    return [record for record in found if id(record) not in wrong], list(wrong.values())


def tables_with_results(found: Sequence[Record]) -> list[str]:
    """Return the names of the tables that have a place for any of the records."""
    return [name for name, layout in LAYOUTS.items() if any(True for _ in layout.places(found))]


def cells(line: Line) -> Cells:
    """Return what a line prints, by column title."""
    difference = f"{line.ours.mean - line.published.value:+.2f}" if line.ours and line.published else "-"
    return {
        "row": line.row,
        "published": line.published.text if line.published else "-",
        "yours": summary_text(line.ours, line.unit) if line.ours else "-",
        "difference": difference,
        "seed spread": spread_text(line.ours),
        "scale": line.scale or "-",
        "data": line.dataset or "-",
        "notes": line.notes or "-",
        "recipe": line.recipe or "-",
        "source": line.published.source if line.published else "this suite",
    }


def summary_text(ours: Summary, unit: str = "%", sign: str = "") -> str:
    """Return "83.70 [83.50..83.90] (2)": mean, range and number of seeds, without a range for one seed; other units than percent are named."""
    suffix = "" if unit == "%" else f" {unit}"
    mean, low, high = (f"{value:{sign}.2f}" for value in ours[:3])
    return f"{mean} ({ours.n}){suffix}" if ours.n == 1 else f"{mean} [{low}..{high}] ({ours.n}){suffix}"


def spread_text(ours: Summary | None) -> str:
    """Return the range over seeds, which one seed does not have."""
    if ours is None:
        return "-"
    return f"{ours.high - ours.low:.2f}" if ours.n > 1 else "one seed"


def rows(table: str, found: Sequence[Record], *, published: bool = True) -> list[Cells]:
    """Return the lines of a table as printed, the column under the layout's own title; without `published` only those that something was run for."""
    title = LAYOUTS[table].column_title
    printed = [(line, cells(line)) for line in lines(table, found) if published or line.scale]
    return [{"row": text.pop("row"), title: line.column, **text} for line, text in printed]


def narrow(printed: Sequence[Cells]) -> list[Cells]:
    """Return rows without the long columns, and without a column of notes where there are none."""
    dropped = {*WIDE, *(["notes"] if all(row.get("notes", "-") == "-" for row in printed) else [])}
    return [{title: text for title, text in row.items() if title not in dropped} for row in printed]


def sheets(
    names: Iterable[str], found: Sequence[Record], *, published: bool = True, whole: bool = False
) -> dict[str, list[Cells]]:
    """Return what is printed of some tables, by title: their rows, then the same-seed differences; with `whole` every column."""
    printed: dict[str, list[Cells]] = {}
    for name in names:
        title = LAYOUTS[name].title
        all_of = rows(name, found, published=published)
        printed |= {
            title: all_of if whole else narrow(all_of),
            f"{title}: same-seed differences": differences(name, found),
        }
    return {title: some for title, some in printed.items() if some}


def numbers(names: Iterable[str], found: Sequence[Record]) -> dict[str, list[Cells]]:
    """Return some tables for other programs: each number in a cell of its own, the columns the same in every table."""
    printed: dict[str, list[Cells]] = {}
    for name in names:
        own = [
            {
                "row": line.row,
                "column": line.column,
                "unit": line.unit,
                "published": digits(line.published.value if line.published else None),
            }
            | summary_cells(line.ours)
            | {"difference": digits(line.ours.mean - line.published.value if line.ours and line.published else None)}
            | {"scale": line.scale, "data": line.dataset, "notes": line.notes, "recipe": line.recipe}
            | {
                "source": line.published.source if line.published else "",
                "confirmed": str(line.published.confirmed) if line.published else "",
            }
            for line in lines(name, found)
        ]
        pairs = [
            {
                "row": pair.row,
                "column": pair.column,
                **summary_cells(pair.difference),
                "scale": pair.scale,
                "data": pair.dataset,
            }
            for pair in pairs_of(name, found)
        ]
        printed |= {LAYOUTS[name].title: own} | (
            {f"{LAYOUTS[name].title}: same-seed differences": pairs} if pairs else {}
        )
    return printed


def summary_cells(summary: Summary | None) -> Cells:
    """Return mean, range and number of seeds in cells of their own."""
    return {
        name: digits(value)
        for name, value in zip(("mean", "low", "high", "seeds"), summary or (None,) * 4, strict=True)
    }


def digits(value: float | None) -> str:
    """Return a number as other programs read it; nothing for None."""
    return "" if value is None else f"{value:.10g}"


class Pair(NamedTuple):
    """A row minus the baseline, over the seeds that both have."""

    row: str
    column: str
    difference: Summary
    seeds: tuple[int, ...]
    scale: str
    dataset: str


def pairs_of(table: str, found: Sequence[Record]) -> list[Pair]:
    """Return row minus baseline over the seeds that both have, where column, scale, data and protocol are the same; empty without such pairs."""
    sets: dict[tuple[object, ...], list[Line]] = defaultdict(list)
    for line in lines(table, found):
        if line.ours:
            result = line.records[0].result
            sets[
                line.column,
                line.scale,
                line.dataset,
                result.backbone,
                result.protocol,
                result.epochs,
                result.global_batch,
            ].append(line)
    pairs: list[Pair] = []
    for group in sets.values():
        order = [*LAYOUTS[table].baseline, *ROWS[table]]
        base = min(group, key=lambda line: order.index(line.row) if line.row in order else len(order))
        for line in group:
            seeds = tuple(sorted(set(line.values) & set(base.values)))
            if line.row != base.row and seeds:
                each = summary_of([line.values[seed] - base.values[seed] for seed in seeds])
                pairs.append(Pair(f"{line.row} - {base.row}", line.column, each, seeds, line.scale, line.dataset))
    return pairs


def differences(table: str, found: Sequence[Record]) -> list[Cells]:
    """Return the same-seed differences of a table as printed."""
    return [
        {
            "row": pair.row,
            LAYOUTS[table].column_title: pair.column,
            "same-seed difference": summary_text(pair.difference, sign="+"),
            "seeds": ", ".join(map(str, pair.seeds)),
            "scale": pair.scale,
            "data": pair.dataset,
        }
        for pair in pairs_of(table, found)
    ]
