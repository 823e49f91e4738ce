"""Annotated types that bound the numbers in configs: `drop_path: BelowOne = 0.0`. Every numeric field uses one of them.

NaN and infinity are never allowed. The upper bounds are far above any sensible value; they catch mistakes such as 1e300
before a run exceeds memory or time.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field


def real(
    *, above: float | None = None, least: float | None = None, most: float | None = None, below: float | None = None
) -> object:
    """Return the constraint of a finite float between these bounds."""
    return Field(gt=above, ge=least, le=most, lt=below, allow_inf_nan=False)


# Shares
Probability = Annotated[float, real(least=0.0, most=1.0)]
"""A probability or a share, 0 and 1 included."""
Portion = Annotated[float, real(above=0.0, most=1.0)]
"""A share above 0, 1 included."""
BelowOne = Annotated[float, real(least=0.0, below=1.0)]
"""A share below 1, 0 included: drop path, dropout, momentum, label smoothing."""
Between = Annotated[float, real(above=0.0, below=1.0)]
"""A share strictly between 0 and 1: the ratio of a mask, the decay of an average."""

# Amounts
Rate = Annotated[float, real(above=0.0, most=1e4)]
"""A learning rate, or a factor of one."""
Weight = Annotated[float, real(least=0.0, most=1e4)]
"""A weight of a loss, a weight decay, an alpha of mixup: 0 turns it off."""
Factor = Annotated[float, real(above=0.0, most=1e4)]
"""A ratio or factor: scale, aspect, temperature, width of an MLP."""
Zoom = Annotated[float, real(least=0.01, most=100.0)]
"""The size of a resized image relative to its frame."""
Epsilon = Annotated[float, real(above=0.0, most=1.0)]
"""A small number that keeps a division finite."""
Positive = Annotated[float, real(above=0.0, most=1e9)]
"""Any other amount above 0: minutes, the norm of a gradient."""
NonNegative = Annotated[float, real(least=0.0, most=1e9)]
"""Any other amount, 0 included: hours, GiB."""
Epochs = Annotated[float, real(above=0.0, most=1e6)]
"""Passes over the training images; may be a fraction."""
ShareOfRun = Annotated[str, Field(pattern=r"^(100|\d{1,2}(\.\d+)?)%$")]
"""A share of a run in percent: "10%", "0.4%"."""
Deviation = Annotated[float, real(above=0.0, most=1.0)]
"""A standard deviation of image values in [0, 1]."""

# Whole numbers
Count = Annotated[int, Field(ge=1, le=10**9)]
"""A number of images, steps or other items, at least 1."""
Whole = Annotated[int, Field(ge=0, le=10**9)]
"""A number of images, steps or other items, 0 included."""
Few = Annotated[int, Field(ge=1, le=1024)]
"""A number of layers, heads or crops of an image, at least 1."""
FewOrNone = Annotated[int, Field(ge=0, le=1024)]
"""A small number, 0 included: layers of an optional part, worker processes, the 0-based index of a layer."""
MostDetections = Annotated[int, Field(ge=1, le=10_000)]
"""Detections per image. The evaluators allocate tables of this length."""
Pixels = Annotated[int, Field(ge=1, le=65536)]
"""A side in pixels, or in patches."""
Sides = Pixels | tuple[Pixels, Pixels]
"""The side of a square, or height and width, in pixels: 224, (64, 128)."""
Width = Annotated[int, Field(ge=1, le=16384)]
"""Channels of a layer."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed of random draws."""
