"""The summary of a suite: pretrainings by tasks, a sentence per row, and whether the expected orderings hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from mae_transfer.suite.expect import Expectation
from mae_transfer.suite.graph.schema import SuiteConfig
from mae_transfer.suite.store.records import Measurement
from mae_transfer.suite.tables import comparison, formats, sheets
from mae_transfer.suite.tables.cells import Cell
from mae_transfer.suite.tables.comparison import Table


class Summary(NamedTuple):
    """Our numbers by row and column, the rows in the suite's order."""

    tables: tuple[Table, ...]  # one per scale
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Cell]]
    chance: dict[str, float]  # what guessing scores, by column
    baseline: str | None  # the row of random weights

    def mean(self, row: str | None, column: str) -> float | None:
        """Return a number, None if there is none."""
        cell = self.rows.get(row or "", {}).get(column)
        return cell.ours.mean if cell and cell.ours else None


class Verdict(NamedTuple):
    """Whether an expectation holds."""

    holds: bool
    sentence: str


def summarise(cfg: SuiteConfig, found: Sequence[Measurement]) -> Summary:
    """Return the summary of a suite's results."""
    about = cfg.about()
    tables = comparison.build(["summary"], found, about=about)
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    rows = comparison.numbers(tables)
    fresh = [n for n, cells in rows.items() if any(run.pretraining is None for c in cells.values() for run in c.runs)]
    chance = {column: value for column, value in about.chance.items() if column in columns}
    return Summary(tuple(tables), columns, rows, chance, next(iter(fresh), None))


def show(summary: Summary, judged: Sequence[Verdict], console: Console) -> None:
    """Print the table, a sentence per row, and whether each expectation holds."""
    for sheet in sheets.sheets(summary.tables):
        formats.draw(sheet, console)
    outcomes = [f"{'as expected' if one.holds else 'NOT AS EXPECTED'}  {one.sentence}" for one in judged]
    for sentence in [*sentences(summary), *outcomes]:
        console.print(sentence, markup=False, highlight=False)


def sentences(summary: Summary) -> list[str]:
    """Return what each row means: its differences to random weights."""
    found = []
    for row, cells in summary.rows.items():
        pairs = {column: (summary.mean(row, column), summary.mean(summary.baseline, column)) for column in cells}
        gains = {column: ours - base for column, (ours, base) in pairs.items() if ours is not None and base is not None}
        if row == summary.baseline:
            found.append(f"{row}: no pretraining. The other rows are compared with this one.")
        elif gains:
            most = max(gains, key=lambda column: gains[column])
            found.append(
                f"{row}: better than {summary.baseline} in {sum(gain > 0 for gain in gains.values())} of {len(gains)} "
                f"columns; largest difference {gains[most]:+.1f} points ({most})."
            )
    return found


def verdicts(summary: Summary, expected: Sequence[Expectation]) -> list[Verdict]:
    """Return for each expectation that is no claim whether the numbers agree.

    One whose numbers are missing does not hold.
    """
    return [_verdict(summary, one) for one in expected if one.claim is None]


def _verdict(summary: Summary, one: Expectation) -> Verdict:
    ours, base = summary.mean(one.row, one.column), summary.mean(one.above, one.column) if one.above else 0.0
    if ours is None or base is None:
        return Verdict(False, f"{one.column}: {one.row if ours is None else one.above} has no number")
    other, above = (f" {one.above} {base:.1f},", " above") if one.above else ("", "")
    sentence = f"{one.column}: {one.row} {ours:.1f},{other} expected at least {one.by:g}{above}"
    return Verdict(ours - base >= one.by, sentence)
