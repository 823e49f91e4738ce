"""Accuracy, counted on the device. Legend: B images, C classes; "..." are optional dimensions, such as probes."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_transfer.data.reports import report_on_main
from mae_transfer.interfaces import MEAN_PER_CLASS

TOP = (1, 5)


def top_ks(classes: int) -> tuple[int, ...]:
    """Return the values of k for which top-k accuracy is meaningful with this number of classes."""
    return tuple(k for k in TOP if k < classes) or (1,)


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the number of images whose label is among the k best scores, (len(ks), ...) int64 with ks = top_ks(C).

    scores: (..., B, C), labels: (B,) int64. See `find_places`.
    """
    places = find_places(scores, labels)
    return torch.stack([(places < k).sum(dim=-1) for k in top_ks(scores.shape[-1])])


def hits_by_class(scores: Tensor, labels: Tensor) -> Tensor:
    """Count each class's images, and those whose label is among the k best scores, for each k of top_ks(C).

    scores: (..., B, C), labels: (B,) int64. See `find_places`. The counts are (1 + len(ks), ..., C) int64.
    """
    places, classes = find_places(scores, labels), scores.shape[-1]
    counted = torch.stack([places < k for k in (classes + 1, *top_ks(classes))]).long()
    return counted.new_zeros(*counted.shape[:-1], classes).index_add_(-1, labels, counted)


def accuracies(counts: Tensor) -> dict[str, list[float]]:
    """Return "top1" ... and "mean-per-class" of each row of scores, given sums of `hits_by_class`, (1 + len(ks), R, C).

    A class without an image is left out of the mean over classes. ValueError if all are.
    """
    images, *right = counts.cpu().double()
    if not images.any():
        raise ValueError("no image of an evaluation set could be read: check its files")
    if empty := int((images[0] == 0).sum()):
        report_on_main(f"{MEAN_PER_CLASS} leaves out {empty} of {images.shape[1]} classes, which have no image")
    tops = zip(top_ks(images.shape[1]), right, strict=True)
    means = {f"top{k}": one.sum(dim=1) / images.sum(dim=1) for k, one in tops}
    means[MEAN_PER_CLASS] = (right[0] / images).nanmean(dim=1)
    return {name: value.tolist() for name, value in means.items()}


def find_places(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the number of classes that rank higher than the label, (..., B) int64; C if the label is no prediction.

    Among equal scores the first class ranks higher on every device, as in argmax. A label with a score of NaN or -inf
    (no prediction) never counts as correct. NaN scores of other classes rank higher than the label.

    Args:
        scores: (..., B, C).
        labels: (B,) int64.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])
    first = torch.arange(scores.shape[-1], device=scores.device) < labels[:, None]
    before = (~(scores <= own) | ((scores == own) & first)).sum(dim=-1)  # comparisons with NaN are false
    predicted = own[..., 0] > -torch.inf
    return before.where(predicted, scores.shape[-1])
