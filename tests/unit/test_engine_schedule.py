"""The learning rate against its formula; no jumps, no negative rates, no warm-up beyond the end."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest

from mae_transfer.config import load
from mae_transfer.engine.schedule import Schedule, in_steps, lr_at
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.segment import SegmentConfig

SCHEDULE = Schedule(warmup_epochs=40.0, min_lr=1e-6)


def rate(step: int, schedule: Schedule = SCHEDULE) -> float:
    return lr_at(step, schedule=schedule, peak=2.4e-3, steps=800 * 312, steps_per_epoch=312)


@pytest.mark.parametrize("step", [0, 1, 311, 40 * 312 - 1, 40 * 312, 5000 * 10, 800 * 312 - 1])
def test_rate_is_maes_formula_at_the_fractional_epoch(step: int) -> None:
    epoch = step / 312
    expected = (
        2.4e-3 * epoch / 40
        if epoch < 40
        else 1e-6 + (2.4e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 760))
    )
    assert rate(step) == pytest.approx(expected, rel=1e-12)


def test_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_at_the_minimum() -> None:
    rates = [rate(step) for step in range(0, 800 * 312 + 1, 312)]
    assert rates[0] == 0.0
    assert max(rates) == rates[40] == pytest.approx(2.4e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert rates[40:] == sorted(rates[40:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert rate(0, Schedule()) == pytest.approx(2.4e-3)


def test_steps_down_at_their_milestones_after_a_warm_up_from_a_share_of_the_peak() -> None:
    """ViTDet in detectron2: 184375 steps of 64 (118287 images), warm-up of 250 from 0.001, / 10 at 163889, 177546."""
    per_epoch = 118287 // 64
    schedule = Schedule(
        kind="constant",
        warmup_epochs=250 / per_epoch,
        warmup_factor=0.001,
        milestones=(163889 / per_epoch, 177546 / per_epoch),
        gamma=0.1,
    )
    rates = {
        step: lr_at(step, schedule=schedule, peak=1e-4, steps=184375, steps_per_epoch=per_epoch)
        for step in (0, 125, 250, 163888, 163889, 177546)
    }
    expected = {0: 1e-7, 125: 1e-4 * (0.001 + 0.999 / 2), 250: 1e-4, 163888: 1e-4, 163889: 1e-5, 177546: 1e-6}
    assert rates == {step: pytest.approx(value) for step, value in expected.items()}


def test_linear_decay_is_mmsegmentations_poly_of_power_one() -> None:
    schedule = Schedule(kind="linear", warmup_epochs=1500.0)
    for step in (1500, 80000, 159999):
        expected = 1e-4 * (1 - (step - 1500) / (160000 - 1500))
        assert lr_at(step, schedule=schedule, peak=1e-4, steps=160000, steps_per_epoch=1) == pytest.approx(expected)


def test_a_warm_up_over_the_whole_run_is_allowed_and_a_longer_one_is_an_error() -> None:
    assert lr_at(10, schedule=Schedule(warmup_epochs=10.0), peak=1.0, steps=10, steps_per_epoch=1) == 1.0
    with pytest.raises(ValueError, match=r"warmup_epochs=11 is 11 steps, but the run has 10.*share"):
        lr_at(0, schedule=Schedule(warmup_epochs=11.0), peak=1.0, steps=10, steps_per_epoch=1)


@pytest.mark.parametrize("milestone", ["10", "22", "100%"])
def test_a_milestone_at_or_beyond_the_end_is_an_error_with_its_remedy(milestone: str) -> None:
    late = milestone if milestone.endswith("%") else float(milestone)
    with pytest.raises(
        ValueError, match=rf"milestones: {milestone} is not before the end of the run, 10 epochs.*shares"
    ):
        lr_at(0, schedule=Schedule(milestones=(5.0, late)), peak=1.0, steps=100, steps_per_epoch=10)


@pytest.mark.parametrize("epochs", [2, 12, 50])
def test_shares_of_a_run_follow_its_length(epochs: int) -> None:
    steps = 156 * epochs
    at = partial(lr_at, peak=1.0, steps=steps, steps_per_epoch=156)
    shares, whole = (
        Schedule(warmup_epochs="10%", milestones=("88%",)),
        Schedule(warmup_epochs=0.1 * epochs, milestones=(0.88 * epochs,)),
    )
    assert [at(step, schedule=shares) for step in range(steps)] == pytest.approx(
        [at(step, schedule=whole) for step in range(steps)]
    )


@pytest.mark.parametrize("share", ["5", "5 %", "-1%", "101%", "1e1%", "%"])
def test_what_is_no_share_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match="warmup_epochs"):
        Schedule(warmup_epochs=share)


@pytest.mark.parametrize(
    ("config", "schema", "changes"),
    [
        ("detect/mask_rcnn_vitdet_base_one_gpu", DetectConfig, ["epochs=12"]),
        ("pretrain/mae_small_64px", PretrainConfig, ["epochs=2"]),
        ("pretrain/mae_vit_base_16_one_gpu", PretrainConfig, ["epochs=12"]),
        ("classify/small_finetune", ClassifyConfig, ["epochs=1"]),
        ("classify/small_linear", ClassifyConfig, ["epochs=1"]),
        ("segment/camvid", SegmentConfig, ["epochs=1"]),
        ("segment/upernet_vit_base_one_gpu", SegmentConfig, ["epochs=1"]),
    ],
)
def test_recipes_that_people_shorten_keep_their_shape(
    config: str, schema: type[TrainConfig], changes: list[str]
) -> None:
    """Of a run of 12 epochs the milestones of 22 and 24 never came, and a warm-up of 5 was longer than one of 2."""
    path = Path(__file__).parents[2] / f"configs/{config}.py"
    long, short = load(path, schema), load(path, schema, overrides=changes)
    for share in (0.001, 0.05, 0.5, 0.87, 0.9, 0.97):
        rates = [
            lr_at(
                round(share * cfg.epochs * 1000),
                schedule=cfg.schedule,
                peak=1.0,
                steps=round(1000 * cfg.epochs),
                steps_per_epoch=1000,
            )
            for cfg in (long, short)
        ]
        assert rates[1] == pytest.approx(rates[0], rel=0.01)


def test_the_digest_of_a_schedule_in_epochs_has_not_moved() -> None:
    assert Schedule(warmup_epochs=40.0, milestones=(700.0,)).digest() == "39f020d733b980d5"


def test_warm_ups_and_milestones_are_whole_or_half_steps_exactly() -> None:
    """ViTDet-H warms up for 3/4 of 250 steps. Epochs are fractions; 163889 / 1832 * 1832 may round to another step."""
    for per_epoch in (1832, 1848, 7, 312):
        half = Schedule(kind="constant", warmup_epochs=187.5 / per_epoch, warmup_factor=0.001)
        rates = [
            lr_at(step, schedule=half, peak=1.0, steps=138281, steps_per_epoch=per_epoch) for step in (0, 187, 188)
        ]
        assert rates == [0.001, 0.001 + 0.999 * 187 / 187.5, 1.0]
        assert all(in_steps(steps / per_epoch, per_epoch) == steps for steps in (163889, 177546, 122916, 133159, 250))


def test_vitdet_hs_config_warms_up_for_187_and_a_half_steps() -> None:
    cfg = load(Path(__file__).parents[2] / "configs/detect/mask_rcnn_vitdet_huge_75ep.py", DetectConfig)
    assert in_steps(cfg.schedule.warmup_epochs, 117_266 // 64) == 187.5
