"""fold and seeded: the two functions that every random draw goes through."""

import random

import numpy as np
import torch

from mae_transfer.seeding import fold, seeded


def test_fold_depends_on_every_part_and_on_their_order() -> None:
    seeds = {
        fold(0),
        fold(1),
        fold(0, "step", 1, 2),
        fold(0, "step", 2, 1),
        fold(0, "sample", 1, 2),
        fold(0, "step", 12),
        fold(0, "step1", 2),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_fold_is_the_same_on_every_machine() -> None:
    assert fold(0, "sample", 3, 7, 0) == 7953288321270257864


def test_seeded_repeats_its_draws_and_restores_the_global_state() -> None:
    def draws() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = draws()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with seeded(5) as first:
        inside = (*draws(), first.random())
    assert draws() == expected
    with seeded(5) as second:
        assert (*draws(), second.random()) == inside


def test_seeded_blocks_nest_without_disturbing_one_another() -> None:
    with seeded(5):
        np.random.rand()
        expected = np.random.rand()
    with seeded(5):
        np.random.rand()
        with seeded(6):
            np.random.rand(3)
        assert np.random.rand() == expected
