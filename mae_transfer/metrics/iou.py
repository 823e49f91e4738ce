"""Mean IoU by counting on the device: equal to mmseg's IoUMetric, exact over ranks, no waiting before the end.

Legend: C classes; the confusion matrix has a row per true and a column per predicted class; "..." is any shape of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as td
from torch import Tensor

from mae_transfer.interfaces import IGNORED


def confusion(predicted: Tensor, truth: Tensor, *, classes: int, ignored: int = IGNORED) -> Tensor:
    """Return the confusion matrix, flat, and after it the number of pixels whose true class is impossible, (C * C + 1,) int64.

    Args:
        predicted: (...) integers in 0..C-1, checked as the truth is.
        truth: (...) integers, class or `ignored`.
    """
    true, found = truth.reshape(-1).long(), predicted.reshape(-1).long()
    possible = (true >= 0) & (true < classes) & (found >= 0) & (found < classes)
    cell = torch.where(possible, true * classes + found, classes * classes)
    return torch.zeros(classes * classes + 1, dtype=torch.int64, device=cell.device).scatter_add_(
        0, cell, (true != ignored).long()
    )


class IouMetric:
    """Counts over the images of a split.

    Args:
        classes: their names.
        device: where it counts: the predictions' device.
        ignored: value of the pixels that are left out, whatever is predicted there.
    """

    def __init__(self, classes: Sequence[str], *, device: torch.device | str = "cpu", ignored: int = IGNORED) -> None:
        self.classes, self.ignored = tuple(classes), ignored
        self.counts = torch.zeros(len(self.classes) ** 2 + 1, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Count the pixels of one image or a batch, (...) class and true class; each image of the split is given once, to one rank."""
        if predicted.shape != truth.shape:
            raise ValueError(
                f"predicted maps {tuple(predicted.shape)} for true maps {tuple(truth.shape)}: resize the logits to the truth first"
            )
        self.counts += confusion(predicted, truth, classes=len(self.classes), ignored=self.ignored)

    def compute(self, *, per_class: bool = False) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in [0, 1] over all ranks (every rank calls it), and on request IoU[name] and Acc[name].

        Classes that neither occur nor are predicted are nan and left out of the means, as in mmseg; so is a mean over no class.

        Raises:
            ValueError: a true (or predicted) class was neither one of the classes nor ignored.
        """
        counts = self.counts.clone()
        if td.is_available() and td.is_initialized():
            td.all_reduce(counts)
        *cells, impossible = counts.tolist()
        if impossible:
            raise ValueError(
                f"{impossible} pixels have a class outside 0..{len(self.classes) - 1} that is not {self.ignored} (ignored): see --check"
            )
        return self._figures(np.array(cells, dtype=np.float64).reshape(len(self.classes), -1), per_class=per_class)

    def _figures(self, matrix: np.ndarray, *, per_class: bool) -> dict[str, float]:
        hit, true, found = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        iou, accuracy = _ratio(hit, true + found - hit), _ratio(hit, true)
        names = ["mIoU", "mAcc", "aAcc"]
        values = [_mean(iou), _mean(accuracy), _ratio(hit.sum(keepdims=True), true.sum(keepdims=True))]
        if per_class:
            names += [f"{what}[{name}]" for what in ("IoU", "Acc") for name in self.classes]
            values += [iou, accuracy]
        return dict(zip(names, np.concatenate(values).tolist(), strict=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0))


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of what is defined, (1,)."""
    there = values[np.isfinite(values)]
    return there.mean(keepdims=True) if len(there) else np.full(1, np.nan)
