"""Evaluators of frozen features: ridge, statistics, and how a constant is selected."""

from __future__ import annotations

from math import isnan, log
from typing import Any, cast

import numpy as np
import pytest
import torch

from mae_transfer.data.sources import LabelledSubset
from mae_transfer.engine.dist import Dist
from mae_transfer.metrics.features import effective_rank, spread
from mae_transfer.metrics.logreg import fit_logreg
from mae_transfer.tasks import choice
from mae_transfer.tasks.choice import Choice, choose, hold_out
from mae_transfer.tasks.evaluation import Evaluator, LabelledFeatures
from mae_transfer.tasks.logreg import LogisticRegression, LogRegConfig, draw_shots
from mae_transfer.tasks.ridge import Ridge
from mae_transfer.tasks.statistics import FeatureStatistics

CPU = Dist(torch.device("cpu"))


def clusters(per_class: int, *, classes: int = 4, noise: float = 1.0, seed: int = 0) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(classes).repeat_interleave(per_class)
    return LabelledFeatures(centres[labels] + noise * torch.randn(len(labels), 8, generator=generator) + 5, labels)


def test_ridge_learns_what_can_be_learned() -> None:
    train, val = clusters(40, noise=0.1), clusters(10, noise=0.1, seed=1)
    figures = Ridge()(train, val, classes=4, dist=CPU)
    assert figures["ridge_top1"] == figures["holdout/ridge_top1"] == 1.0
    shuffled = LabelledFeatures(train.features, train.labels[torch.randperm(160, generator=torch.manual_seed(0))])
    assert Ridge()(shuffled, val, classes=4, dist=CPU)["ridge_top1"] < 0.6


def test_the_penalty_is_selected_on_training_images_alone() -> None:
    train = clusters(20, noise=8.0)
    first, second = (
        Ridge()(train, clusters(5, noise=noise, seed=seed), classes=4, dist=CPU) for noise, seed in ((1.0, 1), (9.0, 2))
    )
    assert first["ridge_top1"] != second["ridge_top1"]
    selected = ("holdout/ridge_top1", "chosen/ridge_penalty")
    assert [first[key] for key in selected] == [second[key] for key in selected]


def test_features_of_any_scale_have_the_same_penalty_and_accuracy() -> None:
    train, val = clusters(20, noise=6.0), clusters(20, noise=6.0, seed=1)
    small = [LabelledFeatures(part.features / 1000, part.labels) for part in (train, val)]
    assert Ridge()(train, val, classes=4, dist=CPU) == Ridge()(*small, classes=4, dist=CPU)


def test_equal_features_give_the_largest_class_and_no_error() -> None:
    equal = LabelledFeatures(torch.ones(10, 4), torch.tensor([0] * 3 + [1] * 7))
    assert Ridge()(equal, equal, classes=2, dist=CPU)["ridge_top1"] == 0.7


def test_a_share_of_each_class_is_held_out_and_a_single_image_is_not() -> None:
    train = LabelledFeatures(torch.arange(26.0)[:, None], torch.tensor([0] * 20 + [1] * 5 + [2]))
    fitted, selected = hold_out(train, 0.1, of="cs")
    assert selected.labels.bincount(minlength=3).tolist() == [2, 1, 0]
    assert fitted.labels.bincount(minlength=3).tolist() == [18, 4, 1]
    assert sorted(torch.cat([fitted.features, selected.features])[:, 0].tolist()) == list(range(26))


def test_classes_of_one_image_need_a_single_value() -> None:
    single = LabelledFeatures(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="each of 3 classes has one image: add images, or give one value"):
        Ridge()(single, single, classes=3, dist=CPU)
    figures = Ridge((0.1,))(single, single, classes=3, dist=CPU)
    assert figures["ridge_top1"] == 1.0
    assert isnan(figures["holdout/ridge_top1"])


def test_the_first_of_equally_good_values_is_chosen() -> None:
    train = clusters(4)
    good, bad = torch.eye(4)[[0, 1, 2, 3]], torch.zeros(4, 4)
    assert choose((3.0, 2.0, 1.0), train, 0.25, lambda *_: (bad, good, good), CPU, of="cs").value == 2.0


def test_logistic_regression_selects_c_on_training_images_and_learns() -> None:
    train, val = clusters(30, noise=3.0), clusters(30, noise=3.0, seed=1)
    figures = LogisticRegression(cs=(1e-3, 1.0), shots=(1, 5), draws=3)(train, val, classes=4, dist=CPU)
    assert figures["logreg_top1"] > 0.7
    assert figures["chosen/logreg_c"] in (1e-3, 1.0)
    for shots in (1, 5):
        mean, least, most = (figures[f"logreg-{shots}shot_top1{end}"] for end in ("", "-min", "-max"))
        assert least <= mean <= most
    assert figures["logreg-1shot_top1-min"] < figures["logreg-1shot_top1-max"]
    assert figures["logreg-1shot_top1"] < figures["logreg-5shot_top1"] < figures["logreg_top1"]
    other = LogisticRegression(cs=(1e-3, 1.0))(train, clusters(9, noise=9.0, seed=2), classes=4, dist=CPU)
    assert [other[key] for key in ("holdout/logreg_top1", "chosen/logreg_c")] == [
        figures[key] for key in ("holdout/logreg_top1", "chosen/logreg_c")
    ]


def test_logistic_regression_does_not_depend_on_scale_and_offset() -> None:
    train, val = clusters(20, noise=6.0), clusters(20, noise=6.0, seed=1)
    moved = [LabelledFeatures(part.features * 64 + 32, part.labels) for part in (train, val)]
    plain, other = (LogisticRegression(cs=(1e-2, 1.0))(*sets, classes=4, dist=CPU) for sets in ((train, val), moved))
    assert other == pytest.approx(plain, abs=0.02)


def test_draws_of_few_images_are_fixed_balanced_and_differ() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 3, 3])
    draws = [draw_shots(labels, 2, draw) for draw in range(4)]
    assert all(labels[one].tolist() == [0, 0, 1, 1, 3, 3] for one in draws)
    assert len({tuple(one.tolist()) for one in draws}) > 1
    assert torch.equal(draws[1], draw_shots(labels, 2, 1))


def test_a_class_with_too_few_images_for_the_shots_is_named_before_any_image_is_read() -> None:
    class Unread:
        classes = ("cat", "cow", "dog", "elk")

        def __len__(self) -> int:
            return 8

        def labels(self) -> np.ndarray:
            return np.array([0, 1, 1, 0, 1, 0, 3, 3])

        def read(self, index: int) -> Any:
            raise AssertionError("labels are listed without images")

        where = read

    cfg, train = LogRegConfig(scale="mini", shots=(2, 3)), LabelledSubset(cast(Any, Unread()), range(8))
    with pytest.raises(ValueError, match=r"shots = 3: class elk has 2 readable training image\(s\); lower shots"):
        cfg.evaluator(train)
    few = LabelledFeatures(torch.randn(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="shots = 2: class cat has 1 readable"):
        LogisticRegression(shots=(2,), names=("cat", "cow"))(few, few, classes=2, dist=CPU)


def test_the_first_rank_s_choice_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank finds the last value best, as rounding of a GPU could make it do."""
    monkeypatch.setattr(choice, "agree", lambda find, dist: Choice(0.1, 0.5))
    right = torch.eye(2)[[0, 1] * 4]
    train = LabelledFeatures(torch.randn(8, 2), torch.tensor([0, 1] * 4))
    found = choose((0.1, 1.0), train, 0.5, lambda _, features, values: [-right[: len(features)]] * 2, CPU, of="cs")
    assert found == Choice(0.1, 0.5)


def test_logistic_regression_that_ends_early_says_so(caplog: pytest.LogCaptureFixture) -> None:
    train = clusters(20, noise=6.0)
    with caplog.at_level("WARNING"):
        fit_logreg(train.features, train.labels, classes=4, c=0.5)
        assert not caplog.messages
        fit_logreg(train.features, train.labels, classes=4, c=0.5, most_steps=1)
    (message,) = caplog.messages
    assert message.startswith("logistic regression with C = 0.5 ended before its minimum (gradient ")
    assert message.endswith("leave C this large out of cs")


@pytest.mark.parametrize("evaluator", [Ridge(), FeatureStatistics(), LogisticRegression()])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(evaluator: Evaluator, value: float) -> None:
    train = clusters(5)
    train.features[3, 2] = value
    with pytest.raises(ValueError, match="1 of 20 training features contain NaN or infinity: check the backbone"):
        evaluator(train, clusters(2), classes=4, dist=CPU)


def test_rank_and_spread_are_shares_of_the_largest() -> None:
    assert effective_rank(torch.eye(6)).item() == pytest.approx(1.0)
    assert effective_rank(torch.ones(6, 4)).item() == pytest.approx(1 / 4, rel=1e-5)
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert effective_rank(two).item() == pytest.approx(
        4 / 3 * 3**0.25 / 4, rel=1e-5
    )  # exp of the entropy of (3/4, 1/4)
    assert log(4 / 3 * 3**0.25) == pytest.approx(-0.75 * log(0.75) - 0.25 * log(0.25))
    assert spread(torch.ones(6, 4)).item() == pytest.approx(0.0, abs=1e-6)
    everywhere = torch.randn(5000, 16, generator=torch.manual_seed(0))
    assert spread(everywhere).item() == pytest.approx(1.0, abs=0.01)
    figures = FeatureStatistics()(LabelledFeatures(torch.eye(6), torch.arange(6)), clusters(1), classes=6, dist=CPU)
    assert set(figures) == {"statistics_rank", "statistics_spread"}
