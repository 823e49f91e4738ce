"""The tables: rows are methods, columns are the paper's, a cell holds ours, the published number and the difference.

One table holds one scale. Its title says on which data it was run: "Table 4" stands over COCO alone. Published numbers
stand beside the runs that did what was published. Rows that only were published come last, or are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

from mae_transfer.results import Result
from mae_transfer.suite.match import FINE_GRAINED, TARGETS, data_of
from mae_transfer.suite.published import Published
from mae_transfer.suite.published.measured import IMAGENET, Elsewhere
from mae_transfer.suite.store.records import About, Measurement
from mae_transfer.suite.tables.cells import Cell, Run, Spread, cells, published, spread, told_apart
from mae_transfer.suite.tables.layouts import ALONE, COLUMNS, FROZEN, LAYOUTS, ROWS
from mae_transfer.suite.tables.ranks import RANK, average_ranks

Show = Literal["all", "beside", "none"]  # of the published numbers
PAPERS = {
    "ImageNet",
    "COCO",
    "ADE20K",
    *FINE_GRAINED.values(),
    "imagenet-a",
    "imagenet-c",
    "imagenet-r",
    "imagenet-sketch",
}
MANY_SETS = ("6", "7", "13", "summary", "frozen")  # tables whose columns name the data
SUMMARY_ORDER = (
    "fine-tune", "partial", "linear", "efficient", "cross", "k-NN", "ridge", "logreg", "box AP", "mask AP", "mIoU"
)  # fmt: skip
FROZEN_ORDER = [title for protocols in FROZEN.values() for title in protocols.values()]
FIXED_K = "k-NN of own runs: k = 20, fixed beforehand"
FEWEST_RANKED = 2  # rows
JUDGED = ("%", "rank")  # units of which a number may be the best
NO_SUITE = About()
FEWEST = 2  # seeds that a paired difference needs


class Row(NamedTuple):
    """A row of a table."""

    name: str
    cells: dict[str, Cell]
    """By column."""
    kind: Literal["ours", "published", "chance"] = "ours"
    detail: str = ""
    """What tells it from another row of the same name."""


class Difference(NamedTuple):
    """A row minus the first row, over the seeds that both have."""

    row: str
    base: str
    column: str
    spread: Spread
    seeds: tuple[int, ...]


class Table(NamedTuple):
    """A table."""

    name: str
    """In LAYOUTS."""
    title: str
    column_title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know of the whole table."""

    @property
    def own(self) -> list[Row]:
        """The rows that were run here."""
        return [row for row in self.rows if row.kind == "ours"]

    def is_best(self, cell: Cell) -> bool:
        """Return whether a number is printed as the best of its column.

        A column with one number has no best, nor has one of hours or tokens.
        """
        numbers = [one for row in self.own if (one := row.cells.get(cell.column)) and one.ours and one.unit in JUDGED]
        if len(numbers) < 2 or not cell.ours or cell.unit not in JUDGED:
            return False
        choose = max if all(one.result and one.result.higher_is_better for one in numbers) else min
        best = choose(one.ours.mean for one in numbers if one.ours)
        return mean_text(cell.ours.mean, cell.unit) == mean_text(best, cell.unit)


def usable(found: Sequence[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Return the records whose numbers are in percent, and a sentence for each that is in another unit."""
    wrong = {
        id(place.record): place.record
        for layout in LAYOUTS.values()
        for place in layout.spots(found)
        if place.unit == "%" and place.record.result.unit != "%"
    }
    return [record for record in found if id(record) not in wrong], [
        f"{record.file}: {record.result.metric} in {record.result.unit!r}, the tables take '%'; left out"
        for record in wrong.values()
    ]


def worth_printing(
    found: Sequence[Measurement], *, show: Show = "beside", about: About = NO_SUITE
) -> tuple[list[Table], list[str]]:
    """Return the summary and the tables that say more than it does, and the names of those that do not.

    A table says more if a published number stands in it, or a number that the summary has not. Of a suite these are
    the tables that it is for.
    """
    summary = build(["summary"], found, show=show, about=about)
    known = {(id(run.record), run.value) for table in summary for run in _runs(table)}
    tables, same = [], []
    for name in about.tables or LAYOUTS:
        some = [] if name == "summary" else build([name], found, show=show, about=about)
        for table in some:
            compared = any(cell.published for row in table.rows for cell in row.cells.values())
            if compared or {(id(run.record), run.value) for run in _runs(table)} - known:
                tables.append(table)
            else:
                same.append(name)
    shown = {table.name for table in tables}
    return summary + tables, [name for name in dict.fromkeys(same) if name not in shown]


def _runs(table: Table) -> list[Run]:
    return [run for row in table.own for cell in row.cells.values() for run in cell.runs]


def build(
    names: Iterable[str], found: Sequence[Measurement], *, show: Show = "beside", about: About = NO_SUITE
) -> list[Table]:
    """Return some tables: one per scale and, where the columns do not name the data, per data set.

    Args:
        names: of LAYOUTS.
        show: "beside": published numbers stand beside ours; "all": also in rows of their own; "none": nowhere.
        about: the suite that the records are of: the order of its rows, and what guessing scores.
    """
    return [table for name in names for table in _tables(name, found, show, about)]


def _tables(name: str, found: Sequence[Measurement], show: Show, about: About) -> Iterator[Table]:
    groups: dict[tuple[bool, str, str], list[Cell]] = defaultdict(list)
    for cell in cells(name, found):
        data = "" if name in MANY_SETS else cell.dataset
        groups[_of_the_paper(name, cell), cell.scale, data].append(cell)
    if show == "all" and not any(key[0] for key in groups) and published(name):
        groups[True, "paper", ""] = []
    for (paper, scale, _), some in sorted(groups.items(), key=lambda item: not item[0][0]):
        own = some if show != "none" else [cell._replace(published=None) for cell in some]
        alone = published(name) if paper and show == "all" else []
        title = _title(name, {cell.dataset: None for cell in some}, "" if paper else scale)
        columns = _columns(name, [*own, *alone])
        rows = (*_rows(name, own, about.rows), *_published_rows(alone, suffix=", published" if own else ""))
        differences, notes = tuple(_differences(name, rows, columns)), tuple[str, ...]()
        if name == "summary":
            rows = (*rows, *_chance(about, columns))
        if name == "frozen":
            rows, columns, notes = _frozen(rows, columns)
        yield Table(name, title, LAYOUTS[name].column_title, columns, rows, differences, notes)


def _of_the_paper(name: str, cell: Cell) -> bool:
    """Return whether a cell was run at the paper's scale on data of the paper, by its record.

    The summary is of no paper. The table of frozen features has all data of a scale.
    """
    if name in ("summary", "frozen"):
        return name == "frozen" and cell.scale == "paper"
    made = cell.result.record if cell.result else None
    if cell.result is None or made is None or cell.scale != "paper":
        return False
    if made.task == "pretrain":
        return "train" in made.data and made.data["train"].whole in IMAGENET.train
    return data_of(cell.result) in PAPERS


def _title(name: str, data: Mapping[str, None], scale: str) -> str:
    """Return the table's title; with a scale it says what was really run."""
    head, _, about = LAYOUTS[name].title.partition(": ")
    if name == "summary":
        return f"{LAYOUTS[name].title} ({scale} scale)"
    if not scale:
        return f"{head} ({about})" if about else head
    about = about.replace("COCO ", "").replace("ADE20K ", "")
    where = f"on {' and '.join(map(repr, data))}, {scale} scale"
    if not about:
        return f"{head}, {where}"
    return f"After {head[0].lower()}{head[1:]} ({about}), {where}"


def _columns(name: str, some: Sequence[Cell]) -> tuple[str, ...]:
    """Return the columns that have a number or a note, the paper's first."""
    used = dict.fromkeys(cell.column for cell in some)
    if name == "summary":
        return tuple(sorted(used, key=lambda column: SUMMARY_ORDER.index(column.partition(",")[0])))
    if name == "frozen":
        classes_first = sorted((*COLUMNS[name], *used), key=lambda column: column.startswith("frozen-"))
        data = dict.fromkeys(column.partition(", ")[2] for column in classes_first)
        place = {f"{title}, {one}": number for number, (one, title) in enumerate(product(data, FROZEN_ORDER))}
        return tuple(sorted(used, key=lambda column: place[column]))
    return tuple([column for column in COLUMNS[name] if column in used] + [c for c in used if c not in COLUMNS[name]])


def _rows(name: str, some: Sequence[Cell], order: Sequence[str]) -> list[Row]:
    """Return our rows in the suite's order, then in the paper's.

    Cells of one row and column stand in rows of their own, which say what differs.
    """
    by_name: dict[str, list[Cell]] = defaultdict(list)
    for cell in some:
        by_name[cell.row].append(cell)
    names = [*dict.fromkeys([*order, *ROWS[name], *TARGETS.values(), *by_name])]
    return [row for one in sorted(by_name, key=names.index) for row in _rows_of(one, by_name[one])]


def _rows_of(name: str, some: Sequence[Cell]) -> list[Row]:
    columns: dict[str, list[Cell]] = defaultdict(list)
    for cell in some:
        columns[cell.column].append(cell)
    if all(len(alike) == 1 for alike in columns.values()):
        return [Row(name, {column: alike[0] for column, alike in columns.items()})]
    split: dict[str, list[dict[str, Cell]]] = defaultdict(list)  # rows by pretraining
    details: dict[int, str] = {}
    for column, alike in columns.items():
        for cell, detail in zip(alike, told_apart(alike), strict=True):
            rows = split[f"{cell.aspects.get('row')} {cell.aspects.get('pretraining')}"]
            free = next((row for row in rows if column not in row), None)
            if free is None:
                rows.append(free := {})
            free[column] = cell
            if detail and len(alike) > 1:
                details.setdefault(id(free), detail)
    return [Row(name, row, detail=details.get(id(row), "")) for rows in split.values() for row in rows]


def _published_rows(alone: Sequence[Cell], suffix: str) -> list[Row]:
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for cell in alone:
        rows[cell.row].setdefault(cell.column, cell)
    return [Row(name + suffix, row, "published") for name, row in rows.items()]


def _frozen(rows: Sequence[Row], columns: Sequence[str]) -> tuple[tuple[Row, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the table of frozen features with the average ranks of its rows, and notes.

    Rows without a number are not ranked. Columns in which another row has no number do not count.
    """
    notes = [FIXED_K] if any(column.startswith("k-NN, ") for column in columns) else []
    pools: dict[str, dict[str, None]] = defaultdict(dict)
    for column, cell in ((column, row.cells.get(column)) for column in columns for row in rows):
        recipe = cell.result.record.recipe if cell and cell.result and cell.result.record else {}
        if pool := recipe.get("pool"):
            pools[str(pool)][column] = None
    notes += [f"pool {pool!r}: {'; '.join(some)}" for pool, some in pools.items()]
    ranked = [row for row in rows if row.kind == "ours" and any(cell.ours for cell in row.cells.values())]
    if len(ranked) >= FEWEST_RANKED:
        ranks, note = average_ranks([(full_name(row), row.cells) for row in ranked], columns)
        cells = {id(row): Cell(row.name, RANK, "rank", some) for row, some in zip(ranked, ranks, strict=True) if some}
        rows = [row._replace(cells={**row.cells, RANK: cells[id(row)]}) if id(row) in cells else row for row in rows]
        columns = (*columns, RANK) if cells else columns
        notes.append(note)
    sources = {row.name: cell.published.source for row in rows for cell in row.cells.values() if cell.published}
    for source in dict.fromkeys(sources.values()):
        notes.append(f"{', '.join(name for name, one in sources.items() if one == source)}: {source}")
    return tuple(rows), tuple(columns), tuple(notes)


def _chance(about: About, columns: Sequence[str]) -> list[Row]:
    guessing = Elsewhere("guessing")
    numbers = {
        column: Cell(
            "chance", column, "%", published=Published("summary", "chance", column, value, "%", "guessing", guessing)
        )
        for column, value in about.chance.items()
        if column in columns
    }
    return [Row("chance", numbers, "chance")] if numbers else []


def _differences(name: str, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Difference]:
    """Yield row minus baseline over the seeds that both have. Backbone, protocol, epochs and batch must be the same."""
    own = [row for row in rows if row.kind == "ours"]
    listed = [*LAYOUTS[name].baseline]
    base = min(own, key=lambda row: listed.index(row.name) if row.name in listed else len(listed), default=None)
    for row in own:
        for column in columns:
            one, other = row.cells.get(column), base.cells.get(column) if base else None
            if base is None or row is base or one is None or other is None or not comparable(one, other):
                continue
            pairs = paired(one.runs, other.runs)
            if len(pairs) >= FEWEST:
                seeds = tuple(sorted({seed for _, seed in pairs}))
                yield Difference(full_name(row), full_name(base), column, spread(list(pairs.values())), seeds)


def full_name(row: Row) -> str:
    """Return the name of a row, with what tells it from another of the same name."""
    return f"{row.name} ({row.detail})" if row.detail else row.name


def numbers(tables: Iterable[Table]) -> dict[str, dict[str, Cell]]:
    """Return our numbers by row and column. Of rows with one name, the first keeps it; others are named in full."""
    rows: dict[str, dict[str, Cell]] = {}
    for row in (row for table in tables for row in table.own):
        measured = {column: cell for column, cell in row.cells.items() if cell.ours}
        if measured:
            rows.setdefault(full_name(row) if row.name in rows else row.name, measured)
    return rows


def comparable(one: Cell, other: Cell) -> bool:
    """Return whether two numbers are percentages of the same images, scale, backbone, protocol, epochs and batch."""
    a, b = one.result, other.result
    if a is None or b is None or one.unit != "%" or _images(a, b) != _images(b, a):
        return False
    return (a.scale, a.backbone, a.protocol, a.epochs, a.global_batch) == (
        b.scale, b.backbone, b.protocol, b.epochs, b.global_batch
    )  # fmt: skip


def _images(one: Result, other: Result) -> tuple[str, int]:
    """Return what identifies the evaluated images of one result; without a record of both, the name of the data set."""
    print_, known = (r.record.data.get(r.split) if r.record else None for r in (one, other))
    return (print_.fingerprint, print_.images) if print_ and known else (one.dataset, 0)


def paired(one: Sequence[Run], other: Sequence[Run]) -> dict[tuple[int | None, int], float]:
    """Return differences by (seed of pretraining, seed of transfer).

    If the seeds of pretraining are unknown, or one side has random weights, the runs of a transfer seed are averaged
    first.
    """
    whole = all(run.pretraining_seed is not None for run in (*one, *other))

    def values(runs: Sequence[Run]) -> dict[tuple[int | None, int], float]:
        by_seed: dict[tuple[int | None, int], list[float]] = defaultdict(list)
        for run in runs:
            by_seed[run.pretraining_seed if whole else None, run.seed].append(run.value)
        return {key: spread(some).mean for key, some in by_seed.items()}

    a, b = values(one), values(other)
    return {key: a[key] - b[key] for key in a if key in b}


def mean_text(value: float, unit: str, sign: str = "") -> str:
    """Return a number as a cell prints it: percentages with one decimal, ranks with two, others with three digits."""
    if unit == "%":
        return _signed(value, 1) if sign else f"{value:.1f}"
    if unit == "rank":
        return f"{value:.2f}"
    text = f"{value:{sign}.0f}" if abs(value) >= 100 else f"{value:{sign}.3g}"
    return f"{text}x" if unit == "x" else text


def _signed(value: float, decimals: int) -> str:
    """Return a difference with its sign; what rounds to zero has none."""
    return f"{value:+.{decimals}f}" if round(value, decimals) else f"{0:.{decimals}f}"


def deviation_text(sd: float, unit: str) -> str:
    """Return a standard deviation: percent with one decimal, other units with two digits and no exponent."""
    if unit == "%" and sd >= 0.05:
        return f"{sd:.1f}"
    digits = 1 if unit == "%" else 2
    return f"{sd:.0f}" if sd >= 10 else f"{sd:.{digits}g}"


def cell_text(cell: Cell) -> str:
    """Return "83.7±0.2 (83.6, +0.1)": mean, standard deviation if there are several runs, published, difference."""
    ours, known = cell.ours, cell.published
    if ours is None:
        return known.text if known and cell.result is None else "-"
    text = mean_text(ours.mean, cell.unit)
    if ours.sd is not None and (cell.unit == "%" or ours.sd):
        text += f"±{deviation_text(ours.sd, cell.unit)}"
    if known is None or cell.difference is None:
        return text
    return f"{text} ({known.text}, {mean_text(cell.difference, cell.unit, sign='+')})"


def difference_text(difference: Difference) -> str:
    """Return "+0.25 [-0.40..+0.50]": mean and range of a paired difference."""
    mean, low, high = (_signed(value, 2) for value in (difference.spread.mean, *difference.spread[2:4]))
    return f"{mean} [{low}..{high}]"


def misses(tables: Iterable[Table]) -> list[str]:
    """Return for each number of ours that could stand beside a published one why it does not."""

    def what(cell: Cell) -> str:
        return cell.nearest.text if cell.nearest else "any number"

    return [
        f"{table.name}: {full_name(row)}, {column}: not beside {what(cell)}: {cell.why_not}"
        for table in tables
        for row in table.own
        for column, cell in row.cells.items()
        if cell.ours and cell.why_not not in (None, ALONE)
    ]
