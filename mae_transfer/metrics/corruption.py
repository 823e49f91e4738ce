"""The mean corruption error of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

SEVERITIES = (1, 2, 3, 4, 5)

ALEXNET_ERROR: Mapping[str, float] = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's top-1 error in [0, 1], mean over the five severities (from the authors' code: hendrycks/robustness)."""


def corruption_errors(errors: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Return the corruption error of each corruption: the sum of errors over severities, divided by AlexNet's sum.

    Args:
        errors: corruption -> severity -> top-1 error in [0, 1], with every corruption and severity.
    """
    return {
        name: sum(errors[name][severity] for severity in SEVERITIES) / (len(SEVERITIES) * alexnet)
        for name, alexnet in ALEXNET_ERROR.items()
    }


def mean_corruption_error(errors: Mapping[str, Mapping[int, float]]) -> float:
    """Return the mean corruption error. AlexNet has 1."""
    return fmean(corruption_errors(errors).values())
