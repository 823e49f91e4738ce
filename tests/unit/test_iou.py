"""metrics/iou.py against numpy on real labels and random maps with ignored regions, and against mmseg's IoUMetric."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_transfer.data.ade import AdeConfig
from mae_transfer.metrics.iou import IouMetric

CAMVID = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)


def by_numpy(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[np.ndarray, np.ndarray, float]:
    """IoU and accuracy per class (NaN if undefined) and over all pixels, one class and one image at a time."""
    hit, true, found = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for predicted, truth in pairs:
        for c in range(classes):
            counted = truth != 255
            hit[c] += ((predicted == c) & (truth == c) & counted).sum()
            true[c] += ((truth == c) & counted).sum()
            found[c] += ((predicted == c) & counted).sum()
    with np.errstate(invalid="ignore"):
        return hit / (true + found - hit), hit / true, hit.sum() / true.sum()


def by_mmseg(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[np.ndarray, np.ndarray, float]:
    """mmseg's IoUMetric: histograms of correct, predicted and true classes over the pixels that are not ignored."""
    totals = np.zeros((3, classes))
    for predicted, truth in pairs:
        kept = truth != 255
        p, t = predicted[kept], truth[kept]
        totals += [np.histogram(values, bins=classes, range=(-0.5, classes - 0.5))[0] for values in (p[p == t], p, t)]
    right, predicted_area, true_area = totals
    with np.errstate(invalid="ignore"):
        return right / (predicted_area + true_area - right), right / true_area, right.sum() / true_area.sum()


def compared(pairs: list[tuple[np.ndarray, np.ndarray]], names: tuple[str, ...]) -> None:
    metric = IouMetric(names)
    for predicted, truth in pairs:
        metric.update(torch.from_numpy(predicted), torch.from_numpy(truth))
    figures = metric.compute(per_class=True)
    for rule in (by_numpy, by_mmseg):
        iou, accuracy, everywhere = rule(pairs, len(names))
        np.testing.assert_allclose([figures[f"IoU[{name}]"] for name in names], iou, rtol=1e-12)
        np.testing.assert_allclose([figures[f"Acc[{name}]"] for name in names], accuracy, rtol=1e-12)
        expected = [np.nanmean(iou), np.nanmean(accuracy), everywhere]
        np.testing.assert_allclose([figures["mIoU"], figures["mAcc"], figures["aAcc"]], expected, rtol=1e-12)


def test_random_maps_with_ignored_regions_and_absent_classes() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(5):
        truth = rng.choice([0, 1, 2, 4, 255], size=(40, 52), p=[0.4, 0.2, 0.1, 0.1, 0.2]).astype(
            np.uint8
        )  # 3 occurs nowhere, 5 is predicted only
        predicted = np.where(
            rng.random(truth.shape) < 0.6, truth % 255, rng.choice([0, 1, 2, 5], size=truth.shape)
        ).astype(np.int64)
        pairs.append((predicted, truth))
    compared(pairs, tuple("abcdefg"))


@pytest.mark.data
def test_real_labels_against_the_labels_of_the_image_before(real_data: Callable[[str], Path]) -> None:
    camvid = AdeConfig(root=str(real_data("camvid")), split="validation", classes=CAMVID).open()
    truth = [camvid.read(index).labels.numpy() for index in range(12)]
    pairs = [(np.where(before == 255, 3, before), after) for before, after in pairwise(truth)]
    compared(pairs, CAMVID)


def test_one_batch_counts_as_its_images_do() -> None:
    truth, predicted = torch.randint(0, 4, (3, 8, 9)), torch.randint(0, 4, (3, 8, 9))
    whole, single = IouMetric("abcd"), IouMetric("abcd")
    whole.update(predicted, truth)
    for one, other in zip(predicted, truth, strict=True):
        single.update(one, other)
    assert torch.equal(whole.counts, single.counts)


def test_perfect_and_entirely_wrong_predictions() -> None:
    truth = torch.tensor([[0, 1, 255], [1, 0, 255]])
    perfect, hopeless, nothing = (IouMetric(("a", "b", "never")) for _ in range(3))
    perfect.update(truth % 255, truth)
    hopeless.update(1 - truth % 255, truth)
    nothing.update(torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), 255))
    assert perfect.compute() == {"mIoU": 1, "mAcc": 1, "aAcc": 1}
    assert hopeless.compute() == {"mIoU": 0, "mAcc": 0, "aAcc": 0}
    assert all(np.isnan(value) for value in nothing.compute().values())


@pytest.mark.parametrize(("predicted", "truth"), [(0, 2), (2, 0), (0, -1)])
def test_an_invalid_class_is_an_error_and_is_not_counted(predicted: int, truth: int) -> None:
    metric = IouMetric("ab")
    metric.update(torch.tensor([[0, predicted]]), torch.tensor([[0, truth]]))
    assert metric.counts.tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"1 pixels have a class outside 0..1"):
        metric.compute()


def test_predictions_at_ignored_pixels_do_not_count() -> None:
    metric = IouMetric("ab", ignored=11)
    metric.update(torch.tensor([0, 1, 7]), torch.tensor([11, 1, 11]))
    assert metric.compute()["aAcc"] == 1


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="resize the logits"):
        IouMetric("ab").update(torch.zeros(4, 4), torch.zeros(8, 8))
