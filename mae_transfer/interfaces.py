"""The vocabulary: the data that pass between loader, model, target and adapter, and the base classes of modules.

Legend: B batch, C image channels, H x W pixels, N = h * w patches of a grid in raster order, V visible patches, M
selected patches, D encoder width, P target size per patch, K taps, n objects of one image, G wide and L narrow views.
Polarity of boolean masks, stated at each function that takes or returns one: True = hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from mae_transfer.arithmetic import exact

Interpolation = Literal["bicubic", "bilinear", "lanczos"]
MEAN_PER_CLASS = "mean-per-class"  # metric: the mean over classes of the accuracy on a class's images
IGNORED = 255  # value of a class map for pixels without a class; loss and metrics ignore them (as in mmseg)


@dataclass(frozen=True)
class Tensors:
    """Base class of batches and of their parts: tensors that move together. A subclass is a frozen dataclass."""

    def apply(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `change` applied to every tensor, also in nested parts, tuples, lists and dicts."""
        return replace(self, **{field.name: _applied(getattr(self, field.name), change) for field in fields(self)})

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return a copy with every tensor on the device."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in pinned memory. torch's loader calls it."""
        return self.apply(Tensor.pin_memory)


def _applied(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Tensors):
        return value.apply(change)
    if isinstance(value, dict):
        return {key: _applied(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_applied(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@dataclass(frozen=True)
class Mask(Tensors):
    """Visible and hidden patches. Their numbers are the same in every row, so all later shapes are static."""

    ids_keep: Tensor  # (B, V) int64, raster indices of the visible patches
    ids_masked: Tensor  # (B, N - V) int64, raster indices of the hidden patches
    ids_drawn: Tensor | None = None  # (B, M) int64, hidden patches drawn to be predicted; None: all of them

    @property
    def ids_predicted(self) -> Tensor:
        """The hidden patches to predict, (B, M)."""
        return self.ids_masked if self.ids_drawn is None else self.ids_drawn


class ViewSpec(NamedTuple):
    """Another rendering of the same crop, flip and jitter (BEiT's tokenizer takes the crop at 112 px, by Lanczos)."""

    size: int | tuple[int, int]  # pixels per side, or height and width
    interpolation: Interpolation


@dataclass(frozen=True)
class Operations(Tensors):
    """RandAugment's operations that the device applies to n images, kind by kind (data/rand_augment.py)."""

    kinds: tuple[tuple[str, int], ...]  # in order: a kind of operation, and the number of images that it changes
    images: Tensor  # (n,) int64, places in the batch; an image can have several operations
    numbers: Tensor  # (n, 32) float64; a table of 256 values has their bytes in it


@dataclass(frozen=True)
class Batch(Tensors):
    """A batch of the loader, in pinned memory. The loop moves it to the device and reads only `index`."""

    image: Tensor  # (B, C, H, W) uint8; core.normalize (or a tokenizer's own map) normalises it on the device
    views: tuple[Tensor, ...]  # (B, C, size, size) uint8 each, one per ViewSpec of the target
    mask: Mask | None
    label: Any  # (B,) int64 for classification, else defined by the task
    index: Tensor  # (B,) int64, sample ids for error messages
    operations: Operations | None = None  # RandAugment that is still to be applied to `image`


@dataclass(frozen=True)
class Hidden(Tensors):
    """The patches of the wide views that the student does not see, M in all views of a batch (iBOT, section 3.2)."""

    ids: Tensor  # (M,) int64, in rising order: places among the G * B * N patches, raster order within a view
    weight: Tensor  # (M,) float32: 1 / number of hidden patches of the same view


@dataclass(frozen=True)
class Looks(Tensors):
    """Flips and colours that the device gives to n = V * B views, view by view, in this order (data/crops.py).

    The four mixes are those of the jitter, and grey; the hue is turned before each of them.
    """

    flip: Tensor  # (n,) bool
    turns: Tensor  # (n, 4) float32, shifts of the hue; 0: none
    mix: Tensor  # (n, 4, 3) float32, weights of crops.mix
    blur: Tensor  # (n, R) float32, weights of transforms.gaussian, filled up with zeros
    solarise: Tensor  # (n,) bool


@dataclass(frozen=True)
class Views(Tensors):
    """Several renderings of each image, each with a crop, a flip and colours of its own, for joint embedding."""

    wide: Tensor  # (G, B, C, S, T) uint8, the views that teacher and student see
    narrow: Tensor | None  # (L, B, C, s, t) uint8, the views that only the student sees
    hidden: Hidden | None  # of the wide views; None: nothing is hidden
    label: Any  # (B,) int64
    index: Tensor  # (B,) int64, sample ids for error messages
    looks: tuple[Looks, Looks | None] | tuple[()] = ()  # of wide and narrow views, still to be applied; (): applied


@dataclass(frozen=True)
class Objects(Tensors):
    """The annotated objects of one image."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1 in pixels, as annotated: not clipped, may be empty
    labels: Tensor  # (n,) int64 index into `classes`
    crowd: Tensor  # (n,) bool: a region of many objects, which training ignores
    masks: Tensor | None  # (n, R) int32, masks as runs of pixels (core.runs); None if not requested


@dataclass(frozen=True)
class Found(Tensors):
    """The detections of one image, best first, in pixels of the input image without padding."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1
    scores: Tensor  # (n,) float32
    labels: Tensor  # (n,) int64 index into the classes
    masks: Tensor | None  # (n, M, M) float32 in [0, 1]: the object within its box; None: a detector of boxes only


@dataclass(frozen=True)
class Features(Tensors):
    """The outputs of a backbone."""

    maps: tuple[Tensor, ...]  # K maps (B, D_k, h_k, w_k), shallow to deep; equal sizes in a plain ViT
    cls: Tensor | None  # (B, D) class token or pooled vector; None if the encoder has none
    cls_tokens: tuple[Tensor, ...] = ()  # (B, D) class token of each map; empty if blocks have none


@dataclass(frozen=True)
class FeatureBatch(Tensors):
    """A batch of features that were computed before (tasks/features.py), in place of images."""

    features: Features
    label: Tensor  # (B,) int64
    index: Tensor  # (B,) int64, sample ids for error messages


class Maps(NamedTuple):
    """Channels and strides of a backbone's maps, shallow to deep."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]  # pixels per cell; all equal for a plain ViT


class MaskSampler(Protocol):
    """Draws one mask per sample, in a worker of the loader."""

    def visible(self, grid: tuple[int, int]) -> int:
        """Return V, the number of visible patches in every mask on this (h, w) grid."""
        ...

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return a permutation of the N patch indices, (N,) int64, the V visible ones first."""
        ...


class Target(nn.Module, ABC):
    """The prediction target of the decoder.

    A call computes it without gradients, outside autocast and in IEEE arithmetic, so it is the same in training,
    evaluation and a cache, at any precision of the model. It is a module of the task, not a part of the MAE, so it is
    not in DDP, EMA, optimizer or export.
    """

    dim: int  # P: width of the decoder's last layer (8192 for dVAE tokens)
    views: tuple[ViewSpec, ...] = ()  # additional views that it needs

    def __call__(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the targets of patches `ids` (B, M)."""
        with torch.no_grad(), exact(ids.device):
            target: Tensor = super().__call__(batch, ids)
        return target

    @abstractmethod
    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Compute the targets of patches `ids` (B, M)."""

    @abstractmethod
    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each patch, (B, M), in float32 or wider, for pred (B, M, P)."""

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return 0-d device tensors by name (token accuracy ...). The loop calls it at log steps only."""
        return {}

    @abstractmethod
    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] with the prediction at patches `ids` and grey elsewhere."""


@dataclass(frozen=True)
class Embedded(Tensors):
    """What a model of joint embedding makes of views, wide ones first. K is the width of its heads.

    Patches and tokens are there if the objective compares patches. Those that are hidden from the student are one
    tensor for all views; without masks, each view has its own with all its N patches.
    """

    features: Tensor  # (G, B, D) of the encoder, wide views
    image: Tensor  # (V, B, K) of all V views that were given
    patches: tuple[Tensor, ...] = ()  # one (M, K), as in Hidden, or (B, N, K) of each view
    tokens: tuple[Tensor, ...] = ()  # one (M, D), or (B, N, D) of each view: the encoder's features of the same patches
    patch_mean: Tensor | None = None  # (K,) mean over all patches of all views; of a teacher


class World(NamedTuple):
    """The processes of a run, as an objective sees them. The defaults are those of one process."""

    rank: int = 0
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor  # (n, ...) -> (world * n, ...) in the order of ranks
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor  # over the ranks


class Heads(NamedTuple):
    """The heads that an objective needs behind an encoder of width D."""

    image: nn.Module  # (V, B, D) -> (V, B, K)
    patches: nn.Module | None = None  # the same for patches, (..., D) -> (..., K); may be the same module
    predictor: nn.Module | None = None  # of the student, (V, B, K) -> (V, B, K)


class Objective(nn.Module, ABC):
    """How the embedding of a student must agree with its teacher's.

    It is computed outside autocast and in IEEE arithmetic. It is a module of the task and in the training state, but
    not in DDP, the average, the optimizer or the export. What it keeps moves once per optimizer step, whatever the
    number of micro-steps.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.pending: list[Tensor] = []  # what `move` needs of each micro-batch since the last step

    def __call__(self, student: Embedded, teacher: Embedded, hidden: Hidden | None, epoch: float) -> Tensor:
        """Return the loss of a micro-batch, 0-d, and add to `pending`.

        epoch: completed epochs, with their fraction.
        """
        with exact(student.image.device):
            loss: Tensor = super().__call__(student, teacher, hidden, epoch)
        return loss

    @abstractmethod
    def forward(self, student: Embedded, teacher: Embedded, hidden: Hidden | None, epoch: float) -> Tensor:
        """Compute the loss."""

    @torch.no_grad()
    def settle(self) -> None:
        """Move what is kept by the pending micro-batches. Every rank calls it once per optimizer step."""
        if self.pending:
            self.move(self.pending)
            self.pending.clear()

    @abstractmethod
    def move(self, pending: list[Tensor]) -> None:
        """Move the centre or the queue."""

    @abstractmethod
    def metrics(self, student: Embedded, teacher: Embedded, epoch: float) -> dict[str, Tensor]:
        """Return 0-d device tensors by name. They are computed at log steps only."""

    def collapse(self, figures: Mapping[str, float]) -> str:
        """Return how the embedding has collapsed, judged by the metrics of a log line; "" if it has not."""
        return ""


class ImageTokenizer(nn.Module, ABC):
    """Converts an image view to a grid of codes and codes to an image, as a dVAE does."""

    codes: int
    stride: int  # pixels of the view per cell
    __call__: Callable[..., Tensor]

    @abstractmethod
    def forward(self, view: Tensor) -> Tensor:
        """Return the code of each cell, (B, h, w) int64, for a view (B, 3, h * stride, w * stride) uint8."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the images (B, 3, h * stride, w * stride) in [0, 1] of codes (B, h, w)."""


class Backbone(nn.Module, ABC):
    """Any encoder. Features come from `forward`, so compile, DDP and checkpointing apply."""

    dim: int  # D: channels of the last map
    depth: int  # layers, for layer-wise decay of the learning rate
    patch: int  # stride of the first map in pixels
    cls_dim: int | None = None  # width of Features.cls; None: D
    __call__: Callable[..., Features]

    @abstractmethod
    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps `taps` (0-based; empty: the last one) of normalised images (B, C, H, W).

        norm: apply the final norm to them.
        """

    def name(self) -> str:
        """Return the name used in tables."""
        return type(self).__name__

    def maps(self) -> Maps:
        """Return the maps that `taps` index: one per block, as in a plain ViT."""
        return Maps((self.dim,) * self.depth, (self.patch,) * self.depth)

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 stem, 1..depth blocks, depth + 1 after them; ValueError if unknown."""
        raise ValueError(f"{self.name()} does not say the layer of {name!r}: train all of it without layer decay")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of two or more dimensions without weight decay."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations; ValueError if unsupported."""
        raise ValueError(f"{self.name()} cannot recompute its activations: set run.checkpoint_activations=False")


class Adapter(nn.Module, ABC):
    """Converts Features to a pyramid. Scale factors are stride / patch."""

    taps: tuple[int, ...]  # indices of the backbone's maps that it uses
    strides: dict[str, float]  # {"p2": 4, "p3": 8, "p4": 16, "p5": 32}; a patch of 14 px, scaled x4, has 3.5
    channels: int
    __call__: Callable[..., dict[str, Tensor]]

    @abstractmethod
    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, channels, H / stride, W / stride)."""


class Model(nn.Module, ABC):
    """A model around a backbone: a classifier, a detector, a segmenter."""

    @property
    @abstractmethod
    def encoder(self) -> Backbone:
        """The backbone inside."""

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: the backbone's ids; adapter and heads come after. ValueError if unknown."""
        prefix = next(f"{path}." for path, module in self.named_modules() if module is self.encoder)
        if name.startswith(prefix):
            return self.encoder.layer_of(name.removeprefix(prefix))
        if name not in dict(self.named_parameters()):
            raise ValueError(f"{name!r} is not a parameter of this {type(self).__name__}")
        return self.encoder.depth + 1

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass; ValueError if the backbone does not support it."""
        self.encoder.set_grad_checkpointing(enable)
