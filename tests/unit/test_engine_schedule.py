"""The learning rate against the formula written out, and against what nobody would forgive: a jump, a negative rate, a warm-up beyond the end."""

from __future__ import annotations

import math

import pytest

from mae_transfer.engine.schedule import Schedule, lr_at

SCHEDULE = Schedule(warmup_epochs=40.0, min_lr=1e-6)


def rate(step: int, schedule: Schedule = SCHEDULE) -> float:
    return lr_at(step, schedule=schedule, peak=2.4e-3, steps=800 * 312, steps_per_epoch=312)


@pytest.mark.parametrize("step", [0, 1, 311, 40 * 312 - 1, 40 * 312, 5000 * 10, 800 * 312 - 1])
def test_rate_is_maes_formula_at_the_fractional_epoch(step: int) -> None:
    epoch = step / 312
    expected = 2.4e-3 * epoch / 40 if epoch < 40 else 1e-6 + (2.4e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 760))
    assert rate(step) == pytest.approx(expected, rel=1e-12)


def test_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_at_the_minimum() -> None:
    rates = [rate(step) for step in range(0, 800 * 312 + 1, 312)]
    assert rates[0] == 0.0
    assert max(rates) == rates[40] == pytest.approx(2.4e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert rates[40:] == sorted(rates[40:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert rate(0, Schedule()) == pytest.approx(2.4e-3)


def test_a_warm_up_over_the_whole_run_is_allowed_and_a_longer_one_is_an_error() -> None:
    assert lr_at(10, schedule=Schedule(warmup_epochs=10.0), peak=1.0, steps=10, steps_per_epoch=1) == 1.0
    with pytest.raises(ValueError, match=r"warmup_epochs=11 is 11 steps, but the run has 10"):
        lr_at(0, schedule=Schedule(warmup_epochs=11.0), peak=1.0, steps=10, steps_per_epoch=1)
