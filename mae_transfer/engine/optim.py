"""Optimizers and their parameter groups: weight decay and learning rate of each parameter.

Layer ids: 0 is the stem, 1..depth are the blocks, depth + 1 is the rest (norm, head, a detector's neck and heads).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from timm.optim.lars import Lars
from torch import Tensor, nn

from mae_transfer.bounds import BelowOne, Epsilon, Portion, Positive, Rate, Weight
from mae_transfer.config import Part, Schema
from mae_transfer.engine.schedule import Anneal

Group = dict[str, Any]
Decay = Literal["matrices", "biases", "all"]  # which parameters have weight decay
NoDecay = Literal["pos_embed", "cls_token", "mask_token", "rel_pos_bias", "relative_position_bias_table"]
FUSED_DEVICES = {"cpu", "cuda", "mps"}  # torch >= 2.6


class Layers(NamedTuple):
    """Layer-wise learning rates: layer i trains at decay ** (depth + 1 - i) times the rate (BEiT; MAE, table 9)."""

    of: Callable[[str], int]  # parameter name -> layer id; raises ValueError for an unknown name
    depth: int  # number of blocks
    decay: float


class _Optimizer(Part):
    """An optimizer and its constants."""

    @abstractmethod
    def build(self, groups: Sequence[Group], lr: float) -> torch.optim.Optimizer:
        """Return the optimizer over groups of `param_groups`, whose parameters are on their device."""


class AdamW(_Optimizer):
    """AdamW, fused if the devices of all parameters support it."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of the averages of the gradient and of its square."""
    eps: Epsilon = 1e-8
    """Added to the denominator."""

    def build(self, groups: Sequence[Group], lr: float) -> torch.optim.Optimizer:
        fused = all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"])
        return torch.optim.AdamW(list(groups), lr=lr, betas=self.betas, eps=self.eps, fused=fused)


class SGD(_Optimizer):
    """SGD with momentum; its weight decay is an l2 penalty."""

    name: Literal["sgd"] = "sgd"
    momentum: BelowOne = 0.9
    """Decay rate of the average of the gradient."""

    def build(self, groups: Sequence[Group], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(groups), lr=lr, momentum=self.momentum)


class LARS(_Optimizer):
    """LARS (You et al.; MAE, table 10).

    Matrices train at trust * |weight| / |gradient| times the rate, vectors at the rate. timm adapts the rate of a group
    with weight decay or with `always_adapt`, so each group is split into matrices and vectors.
    """

    name: Literal["lars"] = "lars"
    momentum: BelowOne = 0.9
    """Decay rate of the average of the update."""
    trust: Portion = 1e-3
    """Learning rate of a matrix, relative to |weight| / |gradient|."""

    def build(self, groups: Sequence[Group], lr: float) -> torch.optim.Optimizer:
        split: list[Group] = []
        for group in groups:
            for adapt in (True, False):
                params = [p for p in group["params"] if (p.ndim > 1) == adapt]
                decay = group["weight_decay"] if adapt else 0.0  # timm would also adapt the rate of vectors with decay
                split += [{**group, "params": params, "always_adapt": adapt, "weight_decay": decay}] if params else []
        optimizer: torch.optim.Optimizer = Lars(split, lr=lr, momentum=self.momentum, trust_coeff=self.trust)
        return optimizer


AnyOptimizer = Annotated[AdamW | SGD | LARS, Field(discriminator="name")]


class EachTensor(Schema):
    """Clipping of every tensor on its own (DINO, utils.clip_gradients)."""

    each: Positive
    """Largest gradient norm of one tensor, l2."""


class OptimConfig(Schema):
    """The optimizer, its learning rate and weight decay."""

    algorithm: AnyOptimizer = AdamW()
    """The optimizer with its options: dict(name="adamw", betas=(0.9, 0.95))."""
    blr: Rate | None = None
    """Base learning rate: the peak rate is blr * global batch / 256. Set this or `lr`."""
    lr: Rate | None = None
    """Absolute peak learning rate for any batch size. Set this or `blr`."""
    weight_decay: Weight | Anneal = 0.05
    """Decoupled weight decay of matrices. Vectors, biases and the parameters that the model exempts have none, unless
    `decay` says otherwise. A change over the run: dict(start=0.04, end=0.4, epochs="100%") (DINO)."""
    layer_decay: Portion | None = None
    """Factor of the learning rate from each layer to the one below it; None: one rate for all layers."""
    no_decay: tuple[NoDecay, ...] | None = None
    """Parameters without weight decay, besides vectors and biases: position table, class token, mask token, tables of
    relative-position biases ("relative_position_bias_table" in timm's models). None: no others in pretraining (MAE);
    at transfer, those that the backbone declares (position table, class token, bias tables)."""
    clip_norm: Positive | EachTensor | None = None
    """Largest total gradient norm, l2; or dict(each=3.0): the largest norm of each tensor. None: no clipping."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.blr is None) == (self.lr is None):
            raise ValueError(f"blr={self.blr} and lr={self.lr}: set exactly one of them")
        if isinstance(self.weight_decay, Anneal) and not self.weight_decay.start:
            raise ValueError("weight_decay.start = 0: start above 0 (1e-6), so that it is known what decays")
        return self


def clip_gradients(parameters: Iterable[nn.Parameter], most: float, *, each: bool) -> Tensor:
    """Clip the norm of all gradients, or of each tensor, to `most`, in place; return the total norm before, 0-d."""
    if not each:
        return nn.utils.clip_grad_norm_(parameters, most)
    norms = [nn.utils.clip_grad_norm_(p, most) for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(norms)


def peak_lr(cfg: OptimConfig, *, global_batch: int) -> float:
    """Return the rate at the end of the warm-up: `lr`, or blr * global_batch / 256 (MAE, appendix A.1)."""
    if cfg.lr is not None:
        return cfg.lr
    assert cfg.blr is not None
    return cfg.blr * global_batch / 256


def select_exempt(model: nn.Module, cfg: OptimConfig, *, default: Collection[str] | None) -> Collection[str] | None:
    """Return the full names of the parameters that `cfg.no_decay` selects, or the default if it is None.

    The result is the `no_decay` argument of `param_groups`.

    Raises:
        ValueError: the model has no such parameter, so the option would have no effect.
    """
    if cfg.no_decay is None:
        return default
    names = [name for name, _ in model.named_parameters()]
    found = {part: [name for name in names if part in name.split(".")] for part in cfg.no_decay}
    if missing := [part for part, matched in found.items() if not matched]:
        raise ValueError(
            f"optim.no_decay names {', '.join(missing)}, which {type(model).__name__} does not have: remove the name"
        )
    return {name for matched in found.values() for name in matched}


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float | Anneal,
    layers: Layers | None = None,
    no_decay: Collection[str] | None = None,
    decay: Decay = "matrices",
) -> list[Group]:
    """Return parameter groups that hold every trainable parameter of the model exactly once.

    Parameters of at most one dimension, biases and `no_decay` get no weight decay (MAE and BEiT) by default.

    Args:
        weight_decay: of all other parameters.
        layers: layer-wise learning rates; None trains all layers at one rate.
        decay: "biases": the biases of matrices decay too, norms do not (detectron2's ViTDet); "all": every parameter
            decays (detectron2's ViTDet-H).
        no_decay: full parameter names; None takes those that the submodules declare with timm's `no_weight_decay()`,
            each under its own prefix.
    Returns:
        Dicts for an optimizer with "params", "weight_decay", "lr_scale" and "name", shallow layers first.
    Raises:
        ValueError: no parameter is trainable, a name of `no_decay` is unknown, or a layer has no parameter.
    """
    first = weight_decay.start if isinstance(weight_decay, Anneal) else weight_decay
    exempt = _declared(model) if no_decay is None else _checked(model, no_decay)
    ids = _layer_ids(model, layers) if layers else None
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    groups: dict[str, Group] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = decay == "all" or (name not in exempt and _decays(name, matrices, biases=decay == "biases"))
            key = (f"layer_{ids[name]:02d}_" if ids else "") + ("decay" if decays else "no_decay")
            scale = layers.decay ** (layers.depth + 1 - ids[name]) if layers and ids else 1.0
            group = groups.setdefault(
                key, {"params": [], "weight_decay": first if decays else 0.0, "lr_scale": scale, "name": key}
            )
            group["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter: everything is frozen")
    return [groups[key] for key in sorted(groups)]


def _decays(name: str, matrices: Collection[str], *, biases: bool) -> bool:
    """Return whether a parameter decays: it is in `matrices`, or, with `biases`, it is the bias of one.

    matrices: names of the parameters with at least two dimensions.
    """
    if name.endswith(".bias"):
        return biases and name.removesuffix("bias") + "weight" in matrices
    return name in matrices


def _declared(model: nn.Module) -> set[str]:
    """Return the names that all submodules declare, with their prefix: a backbone may be inside a detector."""
    modules = [(prefix, module) for prefix, module in model.named_modules() if hasattr(module, "no_weight_decay")]
    return {f"{prefix}.{name}" if prefix else name for prefix, module in modules for name in module.no_weight_decay()}


def _checked(model: nn.Module, names: Collection[str]) -> set[str]:
    unknown = set(names) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"no_decay names {sorted(unknown)}, which are not parameters of {type(model).__name__}")
    return set(names)


def _layer_ids(model: nn.Module, layers: Layers) -> dict[str, int]:
    """Return the layer id of each parameter, frozen ones included.

    Raises:
        ValueError: a layer has no parameter, so its decay would have no effect.
    """
    ids = {name: layers.of(name) for name, _ in model.named_parameters()}
    expected = set(range(layers.depth + 2))
    wrong = {name: i for name, i in ids.items() if i not in expected}
    if wrong:
        raise ValueError(
            f"layers of {wrong} are not within 0..{layers.depth + 1}: check layer_of and the depth ({layers.depth})"
        )
    empty = sorted(expected - set(ids.values()))
    if empty:
        raise ValueError(
            f"layer decay matches no parameter in layers {empty} "
            f"(0 stem, 1..{layers.depth} blocks, {layers.depth + 1} the rest): check layer_of"
        )
    return ids
