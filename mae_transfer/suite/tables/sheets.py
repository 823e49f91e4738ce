"""Tables as texts: what each format prints of a table (sheets), and one line per number for other programs (lines)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mae_transfer.suite.tables.cells import Spread
from mae_transfer.suite.tables.comparison import Row, Table, cell_text, difference_text
from mae_transfer.suite.tables.formats import Line, Sheet, Text

ROW_TITLES = {
    "summary": "pretraining",
    "frozen": "backbone",
    "2": "pretraining",
    "figure 5": "protocol",
    "figure 7": "protocol",
}


def sheets(tables: Iterable[Table]) -> list[Sheet]:
    """Return the tables as printed, each followed by its paired differences if there are any."""
    return [sheet for table in tables for sheet in (_sheet(table), *_differences(table))]


def _sheet(table: Table) -> Sheet:
    marks = _Marks()
    first = "case" if table.name.startswith("1") and table.name != "12" and table.name != "13" else "method"
    first = ROW_TITLES.get(table.name, first)
    rows = []
    for row in table.rows:
        name = Text(row.name + marks.of([row.detail] if row.detail else []), "" if row.kind == "ours" else "grey")
        rows.append((name, *(_text(table, row, column, marks) for column in table.columns)))
    notes = (*_counts(table), *_reasons(table), *table.notes, *marks.notes)
    return Sheet(table.title, (first, *table.columns), tuple(rows), notes)


class _Marks:
    """Numbers for notes; the same note has the same number."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, notes: Sequence[str]) -> str:
        """Return " [1, 2]" for two new notes; nothing without notes."""
        numbers = [self._known.setdefault(note, len(self._known) + 1) for note in notes]
        return f" [{', '.join(map(str, numbers))}]" if numbers else ""

    @property
    def notes(self) -> list[str]:
        """The notes with their numbers."""
        return [f"[{number}] {note}" for note, number in self._known.items()]


def _text(table: Table, row: Row, column: str, marks: _Marks) -> Text:
    cell = row.cells.get(column)
    if cell is None:
        return Text("-", "" if row.kind == "ours" else "grey")
    if row.kind != "ours":
        return Text(cell_text(cell), "grey", cell.published.source if cell.published else "")
    mixed = len({one.counts for one in row.cells.values() if one.ours}) > 1
    text = f"{cell_text(cell)} ({cell.counts})" if mixed and cell.ours else cell_text(cell)
    runs = [f"{cell.ours.low:.2f}..{cell.ours.high:.2f}, {cell.counts}"] if cell.ours else []
    more = "; ".join(filter(None, [*runs, cell.recipe]))
    return Text(text + marks.of(cell.notes), "best" if table.is_best(cell) else "", more, cell)


def _counts(table: Table) -> Iterator[str]:
    """Yield how many runs the numbers are the mean of, for the rows in which it is the same for all."""
    rows: dict[str, list[str]] = {}
    for row in table.own:
        counts = {cell.counts for cell in row.cells.values() if cell.ours}
        if len(counts) == 1:
            rows.setdefault(counts.pop(), []).append(row.name)
    spread = any(cell.ours and cell.ours.n > 1 for row in table.own for cell in row.cells.values())
    head = "mean±sd over runs" if spread else "single runs"
    if len(rows) == 1 and len(next(iter(rows.values()))) == len(table.own):
        yield f"{head}: {next(iter(rows))}"
    elif rows:
        yield f"{head}: " + "; ".join(f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in rows.items())


def _reasons(table: Table) -> Iterator[str]:
    """Yield why rows have no published number beside them. Of the scale the title speaks."""
    reasons: dict[str, list[str]] = {}
    for row in table.own:
        for cell in row.cells.values():
            if cell.nearest and cell.why_not and cell.ours and not cell.why_not.startswith("scale"):
                reasons.setdefault(cell.why_not, []).append(row.name)
    for reason, names in reasons.items():
        yield f"no published number beside {', '.join(dict.fromkeys(names))}: {reason}"


def _differences(table: Table) -> Iterator[Sheet]:
    if not table.differences:
        return
    base = table.differences[0].base
    columns = [column for column in table.columns if any(one.column == column for one in table.differences)]
    rows: dict[str, dict[str, str]] = {}
    for one in table.differences:
        rows.setdefault(one.row, {})[one.column] = difference_text(one)
    texts = [(Text(row), *(Text(cells.get(column, "-")) for column in columns)) for row, cells in rows.items()]
    seeds = sorted({one.seeds for one in table.differences})
    note = "mean [lowest..highest] over the seeds that both rows have: " + "; ".join(
        ", ".join(map(str, some)) for some in seeds
    )
    yield Sheet(
        f"{table.title}: difference to {base}, seed by seed", ("row", *columns), tuple(texts), (note,), paired=True
    )


def lines(tables: Iterable[Table]) -> list[Line]:
    """Return one line per number, each figure in a cell of its own, then one per paired difference."""
    return [line for table in tables for line in (*_numbers(table), *_pairs(table))]


def _numbers(table: Table) -> Iterator[Line]:
    for row in table.rows:
        for cell in row.cells.values():
            known = cell.published
            yield {
                "table": table.title, "row": row.name, "column": cell.column, "unit": cell.unit,
                "published": _digits(known.value if known else None), **_figures(cell.ours),
                "pretrainings": str(cell.pretrainings) if cell.ours else "", "difference": _digits(cell.difference),
                "minus": "", "scale": cell.scale, "data": cell.dataset,
                "notes": "; ".join(filter(None, (*cell.notes, row.detail))),
                "why not": cell.why_not or "", "recipe": cell.recipe, "source": known.source if known else "",
                "confirmed": str(known.confirmed) if known else "",
            }  # fmt: skip


def _pairs(table: Table) -> Iterator[Line]:
    for one in table.differences:
        about = {"table": f"{table.title}: paired differences", "row": one.row, "column": one.column, "unit": "%"}
        yield about | _figures(one.spread) | {"minus": one.base, "notes": f"seeds {', '.join(map(str, one.seeds))}"}


def _figures(some: Spread | None) -> dict[str, str]:
    names = ("mean", "sd", "lowest", "highest", "runs")
    return {name: _digits(value) for name, value in zip(names, some or (None,) * 5, strict=True)}


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
