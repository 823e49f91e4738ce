"""Block masks before filling against BEiT's algorithm 1, written again with Python's generator: 10,000 draws each."""

import math
import random

import numpy as np
import pytest

from mae_transfer.core.masks import Block, Grid

DRAWS, SIDE, COUNT, LEAST = 10_000, 14, 75, 16


def beit(rng: random.Random) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a mask (14, 14) bool, True = hidden, and height and width of its first block."""
    hidden, first = np.zeros((SIDE, SIDE), dtype=bool), (0, 0)
    while hidden.sum() < COUNT:
        allowed = COUNT - int(hidden.sum())
        for _ in range(10):
            area = rng.uniform(LEAST, allowed)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w >= SIDE or h >= SIDE:
                continue
            top, left = rng.randint(0, SIDE - h), rng.randint(0, SIDE - w)
            new = h * w - int(hidden[top : top + h, left : left + w].sum())
            if 0 < new <= allowed:
                first = first if first[0] else (h, w)
                hidden[top : top + h, left : left + w] = True
                break
        else:
            break
    return hidden, first


class Recording(Block):
    """Keeps the first block of the draw."""

    _first: tuple[int, int] | None = None

    def _add_block(self, hidden: np.ndarray, most: int, rng: np.random.Generator) -> bool:
        added = super()._add_block(hidden, most, rng)
        if added and self._first is None:
            self._first = (int(hidden.any(axis=1).sum()), int(hidden.any(axis=0).sum()))
        return added


@pytest.fixture(scope="module")
def draws() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By author: hidden counts (10,000,) and the log aspect ratios of the first blocks (10,000,)."""
    sampler, ours, theirs = Recording(ratio=0.382), [], []
    for seed in range(DRAWS):
        sampler._first = None
        mask = sampler.blocks((SIDE, SIDE), COUNT, np.random.default_rng(seed))
        assert sampler._first is not None
        ours.append((mask.sum(), math.log(sampler._first[0] / sampler._first[1])))
        other, (h, w) = beit(random.Random(seed))
        theirs.append((other.sum(), math.log(h / w)))
    return {name: (np.array(rows)[:, 0], np.array(rows)[:, 1]) for name, rows in (("ours", ours), ("theirs", theirs))}


def test_counts_before_filling_are_distributed_as_beits(draws: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    (ours, _), (theirs, _) = draws["ours"], draws["theirs"]
    assert max(ours.max(), theirs.max()) <= COUNT
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.15)  # five standard errors of a difference of means
    bins = np.arange(COUNT - 20, COUNT + 2)
    gap = np.abs(np.cumsum(np.histogram(ours, bins)[0]) - np.cumsum(np.histogram(theirs, bins)[0])).max() / DRAWS
    assert gap < 1.95 * math.sqrt(2 / DRAWS)  # Kolmogorov and Smirnov's statistic at the 0.1 % level
    assert (ours < COUNT).mean() == pytest.approx(1 / 3, abs=0.06)  # what is then filled at random


def test_aspect_ratios_of_the_blocks_are_distributed_as_beits(draws: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    (_, ours), (_, theirs) = draws["ours"], draws["theirs"]
    grid = np.unique(np.concatenate([ours, theirs]))
    cdfs = [np.searchsorted(np.sort(values), grid, side="right") / DRAWS for values in (ours, theirs)]
    assert np.abs(cdfs[0] - cdfs[1]).max() < 1.95 * math.sqrt(2 / DRAWS)


def test_grid_keeps_exactly_one_of_four() -> None:
    for side in (8, 14, 16):
        assert Grid().visible((side, side)) * 4 == side * side
