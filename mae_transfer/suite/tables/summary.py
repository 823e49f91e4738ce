"""The summary of a suite: pretrainings by tasks, a sentence per row, and whether the expected orderings hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console

from mae_transfer.suite.graph.schema import Expectation, SuiteConfig
from mae_transfer.suite.store.records import Record
from mae_transfer.suite.tables import comparison, formats, sheets
from mae_transfer.suite.tables.comparison import Table, cell_text, full_name


class Cell(NamedTuple):
    """One number of the summary."""

    mean: float
    text: str  # with its standard deviation, if there are several runs


class Summary(NamedTuple):
    """Numbers by row and column, the rows in the suite's order."""

    tables: tuple[Table, ...]  # one per scale
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Cell]]
    chance: dict[str, float]  # what guessing scores, by column
    baseline: str | None  # the row of random weights

    def best(self, column: str) -> float:
        """Return the highest number of a column."""
        return max(cells[column].mean for cells in self.rows.values() if column in cells)


class Verdict(NamedTuple):
    """Whether an expectation holds."""

    holds: bool
    sentence: str


def summarise(cfg: SuiteConfig, found: Sequence[Record]) -> Summary:
    """Return the summary of a suite's results."""
    about = cfg.about()
    tables = comparison.build(["summary"], found, about=about)
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    rows: dict[str, dict[str, Cell]] = {}
    fresh = []
    for row in (row for table in tables for row in table.own):
        name = full_name(row) if row.name in rows else row.name
        numbers = {column: cell for column, cell in row.cells.items() if cell.ours}
        rows[name] = {column: Cell(one.ours.mean, cell_text(one)) for column, one in numbers.items() if one.ours}
        fresh += [name] if any(run.pretraining is None for cell in numbers.values() for run in cell.runs) else []
    chance = {column: value for column, value in about.chance.items() if column in columns}
    return Summary(tuple(tables), columns, {n: c for n, c in rows.items() if c}, chance, next(iter(fresh), None))


def show(summary: Summary, judged: Sequence[Verdict], console: Console) -> None:
    """Print the table, a sentence per row, and whether each expectation holds."""
    for sheet in sheets.sheets(summary.tables):
        formats.draw(sheet, console)
    for sentence in sentences(summary):
        console.print(sentence, markup=False, highlight=False)
    for verdict in judged:
        console.print(
            f"{'as expected' if verdict.holds else 'NOT AS EXPECTED'}  {verdict.sentence}",
            markup=False,
            highlight=False,
        )


def sentences(summary: Summary) -> list[str]:
    """Return what each row means: its differences to random weights."""
    base = summary.rows.get(summary.baseline or "", {})
    found = []
    for row, cells in summary.rows.items():
        gains = {column: cell.mean - base[column].mean for column, cell in cells.items() if column in base}
        if row == summary.baseline:
            found.append(f"{row}: no pretraining. The other rows are compared with this one.")
        elif gains:
            ahead = sum(gain > 0 for gain in gains.values())
            most = max(gains, key=lambda column: gains[column])
            found.append(
                f"{row}: better than {summary.baseline} in {ahead} of {len(gains)} columns; "
                f"largest difference {gains[most]:+.1f} points ({most})."
            )
    return found


def verdicts(summary: Summary, expected: Sequence[Expectation]) -> list[Verdict]:
    """Return for each expectation whether the numbers agree; one whose numbers are missing does not hold."""
    return [_verdict(summary.rows, one) for one in expected]


def _verdict(rows: Mapping[str, Mapping[str, Cell]], one: Expectation) -> Verdict:
    cell = rows.get(one.row, {}).get(one.column)
    if cell is None:
        return Verdict(False, f"{one.column}: {one.row} has no number")
    if one.above is None:
        return Verdict(cell.mean >= one.by, f"{one.column}: {one.row} {cell.mean:.1f}, expected at least {one.by:g}")
    other = rows.get(one.above, {}).get(one.column)
    if other is None:
        return Verdict(False, f"{one.column}: {one.above} has no number")
    difference = cell.mean - other.mean
    text = f"{one.column}: {one.row} {cell.mean:.1f}, {one.above} {other.mean:.1f}, expected at least {one.by:g} above"
    return Verdict(difference >= one.by, text)
