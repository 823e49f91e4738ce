"""The average rank of rows over several columns: 1 is the best row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from mae_transfer.suite.tables.cells import Cell, Run

RANK = "average rank"


def average_ranks(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> list[tuple[Run, ...]]:
    """Return for each row its average rank over the columns, one run per seed.

    The numbers of a seed are ranked among those of the same seed. A cell whose runs share one seed has this number for
    every seed. Equal numbers share the mean of their ranks.

    Args:
        rows: each with numbers in all columns; higher is better.
    """
    runs = [[row[column].runs for column in columns] for row in rows]
    seeds = sorted({run.seed for row in runs for some in row for run in some})
    ranks: list[list[Run]] = [[] for _ in rows]
    for seed in seeds:
        values = [[_of_seed(some, seed) for some in row] for row in runs]
        complete = [[value for value in row if value is not None] for row in values]
        if any(len(row) < len(columns) for row in complete):
            continue  # a row has no run with this seed
        for number, row in enumerate(runs):
            places = [_rank([other[at] for other in complete], number) for at in range(len(columns))]
            made = next((run for some in row for run in some if run.seed == seed), row[0][0])
            ranks[number].append(made._replace(value=fmean(places), seed=seed))
    return [tuple(some) for some in ranks]


def _of_seed(runs: Sequence[Run], seed: int) -> float | None:
    """Return the mean of the runs with a seed, of all if they share one seed; None without such runs."""
    single = len({run.seed for run in runs}) == 1
    values = [run.value for run in runs if single or run.seed == seed]
    return fmean(values) if values else None


def _rank(values: Sequence[float], number: int) -> float:
    own = values[number]
    return 1 + sum(value > own for value in values) + (sum(value == own for value in values) - 1) / 2
