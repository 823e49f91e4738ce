"""Prediction targets of the decoder.

To add a target, write a Target and its config in a new file, then add the config to AnyTarget, a config file and a
test. models/mae.py stays as it is.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mae_transfer.targets.feature import Feature, FeatureConfig
from mae_transfer.targets.frame import Frame, Teacher
from mae_transfer.targets.hog import HOGConfig
from mae_transfer.targets.mean_colour import MeanColourConfig
from mae_transfer.targets.pca import PCA, PCAConfig
from mae_transfer.targets.pixel import NormPixel, NormPixelConfig, PixelConfig
from mae_transfer.targets.token import Token, TokenConfig

AnyTarget = Annotated[
    PixelConfig | NormPixelConfig | PCAConfig | TokenConfig | HOGConfig | FeatureConfig | MeanColourConfig,
    Field(discriminator="name"),
]

__all__ = [
    "PCA",
    "AnyTarget",
    "Feature",
    "FeatureConfig",
    "Frame",
    "HOGConfig",
    "MeanColourConfig",
    "NormPixel",
    "NormPixelConfig",
    "PCAConfig",
    "PixelConfig",
    "Teacher",
    "Token",
    "TokenConfig",
]
