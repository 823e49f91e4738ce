"""What the decoder must predict. A new target is one file, one line here, one config and one test; models/mae.py does not change."""

from __future__ import annotations

from collections.abc import Callable

from mae_transfer.interfaces import Target
from mae_transfer.targets.frame import Frame
from mae_transfer.targets.pixel import NormPixel, Pixel

TARGETS: dict[str, Callable[..., Target]] = {"pixel": Pixel, "norm_pixel": NormPixel}

__all__ = ["TARGETS", "Frame", "NormPixel", "Pixel"]
