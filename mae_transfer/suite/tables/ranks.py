"""The average rank of rows over several columns: 1 is the best row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from mae_transfer.suite.tables.cells import Cell, Run

RANK = "average rank"
FEWEST = 2  # columns
DRAW_NOTHING = ("knn-20", "ridge", "logreg")  # protocols that give the same number with every seed


def average_ranks(
    rows: Sequence[tuple[str, Mapping[str, Cell]]], columns: Sequence[str]
) -> tuple[list[tuple[Run, ...]], str]:
    """Return for each row its average rank, one run per seed, and a note that says over what, or why there is none.

    Columns count in which every row has a number, and seeds with which every row has a number in each of them. The
    numbers of a seed are ranked among each other, and equal ones share the mean of their ranks. A single run that draws
    nothing counts for every seed.

    Args:
        rows: names and cells by column; higher is better.
    """
    shared = [column for column in columns if all(column in cells and cells[column].runs for _, cells in rows)]
    left = "; ".join(column for column in columns if column not in shared)
    ranks: list[list[Run]] = [[] for _ in rows]
    if len(shared) < FEWEST:
        missing = f"; a number is missing in {left}" if left else ""
        return [()] * len(rows), f"{RANK}: none, fewer than {FEWEST} columns have a number in every row{missing}"
    runs = [[cells[column].runs for column in shared] for _, cells in rows]
    drawn = {run.seed for row in runs for some in row if not _draws_nothing(some, row) for run in some}
    skipped = ""
    for seed in sorted(drawn or {runs[0][0][0].seed}):
        values = [[_of_seed(some, seed, row) for some in row] for row in runs]
        complete = [[value for value in row if value is not None] for row in values]
        lacking = [name for (name, _), row in zip(rows, complete, strict=True) if len(row) < len(shared)]
        if lacking:
            skipped += f"; without seed {seed}, which {' and '.join(lacking)} lack{'s' * (len(lacking) == 1)}"
            continue
        for number, row in enumerate(runs):
            places = [_rank([other[at] for other in complete], number) for at in range(len(shared))]
            made = next((run for some in row for run in some if run.seed == seed), row[0][0])
            ranks[number].append(made._replace(value=fmean(places), seed=seed))
    without = f", without {left}: a number is missing" if left else ""
    how = (
        f"over the {len(shared)} columns in which every row has a number{without}; the numbers of a seed are ranked "
        "among each other, and equal numbers share the mean of their ranks"
    )
    about = how if ranks[0] else "none, no seed has a number in every row and column"
    return [tuple(some) for some in ranks], f"{RANK}: {about}{skipped}"


def _draws_nothing(runs: Sequence[Run], row: Sequence[Sequence[Run]]) -> bool:
    """Return whether a cell has a single run, which would give the same number with every other seed.

    That needs weights that do not depend on the seed: the row has one pretraining, which was not made here for the only
    seed of the row.
    """
    one = runs[0]
    others = [run for some in row for run in some]
    alike = one.pretraining is not None and all(run.pretraining == one.pretraining for run in others)
    given = one.pretraining_seed is None or any(run.seed != one.seed for run in others)
    return len(runs) == 1 and one.record.result.protocol in DRAW_NOTHING and alike and given


def _of_seed(runs: Sequence[Run], seed: int, row: Sequence[Sequence[Run]]) -> float | None:
    """Return the mean of the runs with a seed; None without any."""
    values = [run.value for run in runs if run.seed == seed or _draws_nothing(runs, row)]
    return fmean(values) if values else None


def _rank(values: Sequence[float], number: int) -> float:
    own = values[number]
    return 1 + sum(value > own for value in values) + (sum(value == own for value in values) - 1) / 2
