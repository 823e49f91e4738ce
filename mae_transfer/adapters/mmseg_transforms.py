"""mmsegmentation's data pipeline for one image and its map. It uses the global generators, which our loader seeds.

Legend: H x W pixels. mmseg works on BGR, as OpenCV does; these transforms take and return RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_transfer.adapters.mmseg import quiet
from mae_transfer.core.patches import sides
from mae_transfer.interfaces import IGNORED


class TrainingCrop:
    """The training pipeline of mmseg's ADE20K recipes: resize, crop, flip, photometric distortion.

    Args:
        scale: longer and shorter side in pixels that an image is fitted into with its aspect ratio, before `ratios`.
        ratios: smallest and largest random factor of `scale`.
        size: pixels per side of the crop, or its height and width; smaller images stay smaller.
        largest_share: largest share of the labelled pixels of a crop that one class may have (ten draws are tried);
            1.0: no limit.
        flip: probability of mirroring.
        distort: whether brightness, contrast, saturation and hue are changed.
    """

    def __init__(
        self,
        *,
        scale: tuple[int, int],
        ratios: tuple[float, float],
        size: int | tuple[int, int],
        largest_share: float,
        flip: float = 0.5,
        distort: bool = True,
    ) -> None:
        self.options: dict[str, Any] = {
            "scale": scale,
            "ratios": ratios,
            "size": size,
            "largest_share": largest_share,
            "flip": flip,
            "distort": distort,
        }
        with quiet():
            from mmcv.transforms import RandomFlip, RandomResize
            from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop
        one_thread()
        self.steps: list[Any] = [
            RandomResize(scale=scale, ratio_range=ratios, keep_ratio=True),
            RandomCrop(size, cat_max_ratio=largest_share, ignore_index=IGNORED),
            RandomFlip(prob=flip),
            *([PhotoMetricDistortion()] if distort else []),
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the options only: unpickling mmseg's objects would import mmseg with its output and warnings."""
        return partial(TrainingCrop, **self.options), ()

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a crop of an image (3, H, W) uint8 RGB and its map (H, W) uint8, using numpy's global generator."""
        results: dict[str, Any] = {
            "img": _to_bgr(image),
            "gt_seg_map": np.asarray(labels),
            "seg_fields": ["gt_seg_map"],
        }
        for step in self.steps:
            results = step(results)
        return _to_rgb(results["img"]), torch.from_numpy(np.ascontiguousarray(results["gt_seg_map"]))


class Rescale:
    """Resizes an image to the scales of an evaluation.

    Args:
        scale: longer and shorter side in pixels that it is fitted into with its aspect ratio (mmseg's Resize).
        ratios: factors of both, one view each.
        least: smallest size of a view in pixels, one side or height and width. Evaluation at several scales needs it
            (SETR, BEiT: the crop size).
    """

    def __init__(
        self, *, scale: tuple[int, int], ratios: Sequence[float] = (1.0,), least: int | tuple[int, int] = 0
    ) -> None:
        with quiet():
            from mmcv.image import imrescale
        one_thread()
        self.scale, self.ratios, self.least, self.resize = scale, tuple(ratios), sides(least), imrescale

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the views, (3, h, w) uint8 each, of an image (3, H, W) uint8."""
        pixels = _to_bgr(image)
        return tuple(_to_rgb(self.resize(pixels, self._factor(image.shape[1:], ratio))) for ratio in self.ratios)

    def _factor(self, size: Sequence[int], ratio: float) -> float | tuple[int, int]:
        longer, shorter = (int(side * ratio) for side in self.scale)
        factor = min(longer / max(size), shorter / min(size))
        covering = max(least / side for least, side in zip(self.least, size, strict=True))
        return covering if factor < covering else (longer, shorter)


def one_thread() -> None:
    """Limit OpenCV to one thread in this process and its forks: workers are processes, and a forked pool can hang."""
    import cv2

    cv2.setNumThreads(0)


def _to_bgr(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1])


def _to_rgb(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1])).permute(2, 0, 1).contiguous()
