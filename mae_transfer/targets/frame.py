"""What every target is told of the images that it will see."""

from __future__ import annotations

from typing import NamedTuple

from mae_transfer.core.normalize import Statistics


class Frame(NamedTuple):
    """The patches of the encoder's images."""

    patch: int  # side p of a patch, pixels
    grid: tuple[int, int]  # h x w patches in raster order
    statistics: Statistics  # how the encoder's images are normalised; its length is the number of channels
