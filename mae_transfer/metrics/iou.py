"""Mean IoU, counted on the device. It equals mmseg's IoUMetric, is exact over ranks, and synchronises only at the end.

Legend: C classes; "..." is any shape of pixels. The confusion matrix has a row per true class and a column per
predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as td
from torch import Tensor

from mae_transfer.interfaces import IGNORED


def confusion(predicted: Tensor, truth: Tensor, *, classes: int, ignored: int = IGNORED) -> Tensor:
    """Return the flat confusion matrix, followed by the number of pixels with an invalid class, (C * C + 1,) int64.

    Args:
        predicted: (...) integers in 0..C-1; other values are invalid.
        truth: (...) integers, 0..C-1 or `ignored`; other values are invalid.
    """
    true, found = truth.reshape(-1).long(), predicted.reshape(-1).long()
    valid = (true >= 0) & (true < classes) & (found >= 0) & (found < classes)
    cell = torch.where(valid, true * classes + found, classes * classes)
    return torch.zeros(classes * classes + 1, dtype=torch.int64, device=cell.device).scatter_add_(
        0, cell, (true != ignored).long()
    )


class IouMetric:
    """Accumulates the confusion matrix over the images of a split.

    Args:
        classes: names of the classes.
        device: device of the counts; must be that of the predictions.
        ignored: true value of pixels to leave out.
    """

    def __init__(self, classes: Sequence[str], *, device: torch.device | str = "cpu", ignored: int = IGNORED) -> None:
        self.classes, self.ignored = tuple(classes), ignored
        self.counts = torch.zeros(len(self.classes) ** 2 + 1, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Count the pixels of an image or a batch, (...) each. Pass each image of the split once, on one rank."""
        if predicted.shape != truth.shape:
            raise ValueError(
                f"predicted maps {tuple(predicted.shape)} differ in shape from true maps {tuple(truth.shape)}: resize "
                "the logits to the truth first"
            )
        self.counts += confusion(predicted, truth, classes=len(self.classes), ignored=self.ignored)

    def compute(self, *, per_class: bool = False) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in [0, 1] over all ranks, and IoU[name] and Acc[name] with `per_class`.

        Every rank calls it. As in mmseg, classes that neither occur nor are predicted are NaN and left out of the
        means. A mean over no class is NaN.

        Raises:
            ValueError: a true or predicted class is invalid.
        """
        counts = self.counts.clone()
        if td.is_available() and td.is_initialized():
            td.all_reduce(counts)
        *cells, invalid = counts.tolist()
        if invalid:
            raise ValueError(
                f"{invalid} pixels have a class outside 0..{len(self.classes) - 1} that is not {self.ignored} "
                "(ignored): find them with tools/prepare_data.py check"
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
    """Return the mean of the finite values, (1,); NaN if there are none."""
    finite = values[np.isfinite(values)]
    return finite.mean(keepdims=True) if len(finite) else np.full(1, np.nan)
