"""The vocabulary of the suite on one page: what travels between loader, model, target and adapter.

Legend: B batch, C image channels, H x W pixels, N = h * w patches of a grid in raster order, V visible patches, M patches asked for, D encoder
width, P target size per patch, K taps, n objects of one image. A mask's polarity is written out wherever one crosses a function: True = hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear", "lanczos"]
IGNORED = 255  # of a class map, where a pixel has no class: it teaches and counts nothing (as in mmseg)


class Mask(NamedTuple):
    """Which patches the encoder sees. V is the same in every row, so every shape downstream is static."""

    ids_keep: Tensor  # (B, V) int64, raster indices of the visible patches
    ids_masked: Tensor  # (B, N - V) int64, raster indices of the hidden patches


class ViewSpec(NamedTuple):
    """A further rendering of the same crop, flip and jitter (BEiT's tokenizer sees the crop at 112 px, resized by Lanczos)."""

    size: int | tuple[int, int]  # pixels per side, or height and width
    interpolation: Interpolation


class Batch(NamedTuple):
    """What the loader hands over: pinned, moved by the loop, never looked into by it beyond `index`."""

    image: Tensor  # (B, C, H, W) uint8, not normalised: core.normalize (or a tokenizer's own map) runs on the device
    views: tuple[Tensor, ...]  # (B, C, size, size) uint8 each, one per ViewSpec that the target asked for
    mask: Mask | None
    label: Any  # (B,) int64 for classification, else whatever the task put there
    index: Tensor  # type: ignore[assignment]  # (B,) int64, ids of the samples, so that a bad step can be named (shadows tuple.index, unused here)


class Objects(NamedTuple):
    """What is annotated in one image."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1 in pixels, as annotated: neither clipped to the image nor free of empty ones
    labels: Tensor  # (n,) int64 index into `classes`
    crowd: Tensor  # (n,) bool: a region of many, which training ignores
    masks: (
        Tensor | None
    )  # (n, R) int32, the masks of the image as runs of pixels (core.runs); None where they were not asked for


class Found(NamedTuple):
    """What a detector finds in one image, in pixels of the image that it was given, padding left out; best first."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1
    scores: Tensor  # (n,) float32
    labels: Tensor  # (n,) int64 index into the classes
    masks: Tensor | None  # (n, M, M) float32 in [0, 1]: the object within its box; None: a detector of boxes alone


class Features(NamedTuple):
    """What a backbone returns."""

    maps: tuple[
        Tensor, ...
    ]  # K maps (B, D_k, h_k, w_k), shallow to deep; plain ViT: equal sizes; hierarchical: strides grow
    cls: Tensor | None  # (B, D) class token or pooled vector; None where the encoder was built without one


@runtime_checkable
class MaskSampler(Protocol):
    """Draws one mask per sample, in the loader's worker."""

    def visible(self, grid: tuple[int, int]) -> int:
        """Return V, the number of visible patches of every mask on this (h, w) grid."""
        ...

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return a permutation of the N patch indices, (N,) int64, the V visible ones first."""
        ...


@runtime_checkable
class Target(Protocol):
    """What the decoder must predict. An nn.Module held by the task, never inside the MAE: it enters neither DDP, EMA, optimizer nor export."""

    dim: int  # P: sizes the decoder's last layer (8192 for dVAE tokens)
    views: tuple[ViewSpec, ...]  # further views that it needs

    def __call__(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the targets of patches `ids` (B, M), without gradient and outside autocast (targets.FrozenTarget)."""
        ...

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each patch, (B, M), in at least float32, for pred (B, M, P)."""
        ...

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return 0-d device tensors by name (token accuracy ...); called at log steps only."""
        ...

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1] that show the prediction in its places and grey elsewhere."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """A dVAE or its kin: an image view becomes a grid of codes, and codes become an image."""

    codes: int
    stride: int  # pixels of the view per cell

    def __call__(self, view: Tensor) -> Tensor:
        """Return the code of each cell, (B, h, w) int64, for a view (B, 3, h * stride, w * stride) uint8."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images (B, 3, h * stride, w * stride) in [0, 1] that codes (B, h, w) stand for."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """Any encoder of the suite, an nn.Module. Features come through forward, so that compile, DDP and checkpointing wrap it."""

    dim: int
    depth: int
    patch: int

    def __call__(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps after the blocks `taps` (0-based) of normalised images (B, C, H, W); norm: pass them through the final norm."""
        ...

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 stem, 1..depth blocks, depth + 1 after them; an unknown name raises ValueError."""
        ...


@runtime_checkable
class Adapter(Protocol):
    """Dresses Features as a pyramid; an nn.Module. Scale factors are stride / patch."""

    taps: tuple[int, ...]  # the backbone's maps that it takes
    strides: dict[str, float]  # {"p2": 4, "p3": 8, "p4": 16, "p5": 32}; a patch of 14 px, scaled x4, has 3.5
    channels: int

    def __call__(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, channels, H / stride, W / stride)."""
        ...
