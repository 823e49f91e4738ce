"""Prediction targets of the decoder.

To add a target, write a Target in a new file, one line in TARGETS, a config and a test. models/mae.py stays as
it is.
"""

from __future__ import annotations

from collections.abc import Callable

from mae_transfer.interfaces import Target
from mae_transfer.targets.feature import Feature, Teacher
from mae_transfer.targets.frame import Frame
from mae_transfer.targets.hog import HOG
from mae_transfer.targets.mean_colour import MeanColour
from mae_transfer.targets.pca import PCA
from mae_transfer.targets.pixel import NormPixel, Pixel
from mae_transfer.targets.token import Token

TARGETS: dict[str, Callable[..., Target]] = {
    "pixel": Pixel,
    "norm_pixel": NormPixel,
    "pca": PCA,
    "token": Token,
    "hog": HOG,
    "feature": Feature,
    "mean_colour": MeanColour,
}

__all__ = [
    "HOG",
    "PCA",
    "TARGETS",
    "Feature",
    "Frame",
    "MeanColour",
    "NormPixel",
    "Pixel",
    "Teacher",
    "Token",
]
