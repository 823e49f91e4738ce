"""The format of the encoder's images, which every target needs."""

from __future__ import annotations

from typing import NamedTuple

from mae_transfer.core.normalize import Statistics


class Frame(NamedTuple):
    """The patches of the encoder's images."""

    patch: int  # side p of a patch, pixels
    grid: tuple[int, int]  # h x w patches in raster order
    statistics: Statistics  # normalisation of the encoder's images, one value per channel
