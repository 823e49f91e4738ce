"""The summary of a suite: one table of pretrainings by tasks, a sentence per row, and whether the orderings that the suite expects hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mae_transfer.suite.records import Record
from mae_transfer.suite.schema import Expectation, SuiteConfig
from mae_transfer.suite.tables import lines, summary_text

FRESH = "none"  # what Result.pretrain says of random weights
ORDER = ("fine-tune", "partial", "linear", "k-NN", "box AP", "mask AP", "mIoU")  # of the columns


class Cell(NamedTuple):
    """One number of the summary."""

    mean: float
    text: str  # with range and number of seeds, where there are several


class Summary(NamedTuple):
    """Numbers by row and column, the rows in the suite's order."""

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
    measured = [line for line in lines("summary", found) if line.ours is not None]
    columns = tuple(
        sorted(dict.fromkeys(line.column for line in measured), key=lambda c: ORDER.index(c.partition(",")[0]))
    )
    names = [source.row or row for row, source in cfg.rows.items()]
    rows: dict[str, dict[str, Cell]] = {name: {} for name in names if any(line.row == name for line in measured)}
    for line in measured:
        assert line.ours is not None
        text = f"{line.ours.mean:.1f}" if line.ours.n == 1 else summary_text(line.ours)
        rows.setdefault(line.row, {})[line.column] = Cell(line.ours.mean, text)
    fresh = {line.row for line in measured if line.records[0].result.pretrain == FRESH}
    baseline = next((row for row in rows if row in fresh), None)
    return Summary(columns, rows, {c: v for c, v in cfg.chance.items() if c in columns}, baseline)


def show(summary: Summary, judged: Sequence[Verdict], console: Console) -> None:
    """Print the table, the best of each column bold, a sentence per row, and whether each expectation holds."""
    grid = Table("pretraining", *summary.columns, title="Summary: pretrainings by tasks, %", title_justify="left")
    for row, cells in summary.rows.items():
        best = {column for column, cell in cells.items() if cell.mean == summary.best(column)}
        texts = {column: cells[column].text if column in cells else "-" for column in summary.columns}
        grid.add_row(
            escape(row), *(f"[bold]{text}[/bold]" if column in best else text for column, text in texts.items())
        )
    if summary.chance:
        texts = {
            column: f"{summary.chance[column]:.1f}" if column in summary.chance else "-" for column in summary.columns
        }
        grid.add_row("chance", *texts.values(), style="dim")
    console.print(grid)
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
                f"{row}: better than {summary.baseline} in {ahead} of {len(gains)} columns; largest difference {gains[most]:+.1f} points ({most})."
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
