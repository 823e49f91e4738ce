"""The shared types of the suite: data and interfaces between loader, model, target and adapter.

Legend: B batch, C image channels, H x W pixels, N = h * w patches of a grid in raster order, V visible patches, M
selected patches, D encoder width, P target size per patch, K taps, n objects of one image. Polarity of boolean masks,
stated at each function that takes or returns one: True = hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear", "lanczos"]
IGNORED = 255  # value of a class map for pixels without a class; loss and metrics ignore them (as in mmseg)


class Mask(NamedTuple):
    """Visible and hidden patches. V is the same in every row, so all later shapes are static."""

    ids_keep: Tensor  # (B, V) int64, raster indices of the visible patches
    ids_masked: Tensor  # (B, N - V) int64, raster indices of the hidden patches


class ViewSpec(NamedTuple):
    """Another rendering of the same crop, flip and jitter (BEiT's tokenizer takes the crop at 112 px, by Lanczos)."""

    size: int | tuple[int, int]  # pixels per side, or height and width
    interpolation: Interpolation


class Batch(NamedTuple):
    """A batch of the loader, in pinned memory. The loop moves it to the device and reads only `index`."""

    image: Tensor  # (B, C, H, W) uint8; core.normalize (or a tokenizer's own map) normalises it on the device
    views: tuple[Tensor, ...]  # (B, C, size, size) uint8 each, one per ViewSpec of the target
    mask: Mask | None
    label: Any  # (B,) int64 for classification, else defined by the task
    index: Tensor  # type: ignore[assignment]  # (B,) int64, sample ids for error messages (shadows tuple.index, unused)


class Objects(NamedTuple):
    """The annotated objects of one image."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1 in pixels, as annotated: not clipped, may be empty
    labels: Tensor  # (n,) int64 index into `classes`
    crowd: Tensor  # (n,) bool: a region of many objects, which training ignores
    masks: Tensor | None  # (n, R) int32, masks as runs of pixels (core.runs); None if not requested


class Found(NamedTuple):
    """The detections of one image, best first, in pixels of the input image without padding."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1
    scores: Tensor  # (n,) float32
    labels: Tensor  # (n,) int64 index into the classes
    masks: Tensor | None  # (n, M, M) float32 in [0, 1]: the object within its box; None: a detector of boxes only


class Features(NamedTuple):
    """The outputs of a backbone."""

    maps: tuple[Tensor, ...]  # K maps (B, D_k, h_k, w_k), shallow to deep; equal sizes in a plain ViT
    cls: Tensor | None  # (B, D) class token or pooled vector; None if the encoder has none


@runtime_checkable
class MaskSampler(Protocol):
    """Draws one mask per sample, in a worker of the loader."""

    def visible(self, grid: tuple[int, int]) -> int:
        """Return V, the number of visible patches in every mask on this (h, w) grid."""
        ...

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return a permutation of the N patch indices, (N,) int64, the V visible ones first."""
        ...


@runtime_checkable
class Target(Protocol):
    """The prediction target of the decoder.

    It is an nn.Module of the task, not a part of the MAE, so it is not in DDP, EMA, optimizer or export.
    """

    dim: int  # P: width of the decoder's last layer (8192 for dVAE tokens)
    views: tuple[ViewSpec, ...]  # additional views that it needs

    def __call__(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the targets of patches `ids` (B, M), without gradient and outside autocast (targets.FrozenTarget)."""
        ...

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each patch, (B, M), in float32 or wider, for pred (B, M, P)."""
        ...

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return 0-d device tensors by name (token accuracy ...). The loop calls it at log steps only."""
        ...

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] with the prediction at patches `ids` and grey elsewhere."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Converts an image view to a grid of codes and codes to an image, as a dVAE does."""

    codes: int
    stride: int  # pixels of the view per cell

    def __call__(self, view: Tensor) -> Tensor:
        """Return the code of each cell, (B, h, w) int64, for a view (B, 3, h * stride, w * stride) uint8."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images (B, 3, h * stride, w * stride) in [0, 1] of codes (B, h, w)."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """Any encoder of the suite; an nn.Module. Features come from `forward`, so compile, DDP and checkpointing apply."""

    dim: int
    depth: int
    patch: int

    def __call__(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps after the blocks `taps` (0-based) of normalised images (B, C, H, W).

        norm: apply the final norm to them.
        """
        ...

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 stem, 1..depth blocks, depth + 1 after them; ValueError if unknown."""
        ...


@runtime_checkable
class Adapter(Protocol):
    """Converts Features to a pyramid; an nn.Module. Scale factors are stride / patch."""

    taps: tuple[int, ...]  # indices of the backbone's maps that it uses
    strides: dict[str, float]  # {"p2": 4, "p3": 8, "p4": 16, "p5": 32}; a patch of 14 px, scaled x4, has 3.5
    channels: int

    def __call__(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, channels, H / stride, W / stride)."""
        ...
