"""The ways to classify with a pretrained backbone: fine-tune all of it, its last blocks, or a row of linear probes on it. An entry of PROTOCOLS each.

A protocol says what it changes in the backbone, builds the model, groups its parameters and takes the training step; what it makes of images is
always a row of scores (K, B, C), K = 1 for fine-tuning, so that one evaluation serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from mae_transfer.bounds import BelowOne, NonNegative, Probability, Rate, Weight
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.engine.loop import Step, StepFn
from mae_transfer.engine.optim import Group, Layers, OptimConfig, param_groups, spared
from mae_transfer.interfaces import Batch
from mae_transfer.models.heads import Classifier, Pool, ProbeRow, Tune, freeze


class Feed(NamedTuple):
    """What a protocol's step is made for."""

    statistics: Statistics
    classes: int
    micro: int  # images per device and forward pass
    device: torch.device


class ClassifyProtocol(Protocol):
    """What the task asks of a protocol."""

    @property
    def title(self) -> str:
        """What a table calls it: "finetune", "partial-4", "linear"."""
        ...

    @property
    def row(self) -> tuple[str, ...]:
        """The names of the K scores that its model gives."""
        ...

    @property
    def least(self) -> int:
        """Images per forward pass that its batch norms train on at least."""
        ...

    def changes(self) -> dict[str, Any]:
        """Return the fields of the backbone's architecture that it sets."""
        ...

    def model(self, backbone: nn.Module, classes: int) -> nn.Module:
        """Return the model around a loaded backbone, frozen where it must be."""
        ...

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """Return the optimizer's groups: every trainable parameter once."""
        ...

    def step(self, feed: Feed) -> StepFn:
        """Return the training step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Everything trains (MAE, A.1 and table 9).

    Args:
        pool: "mean" of the patch tokens through a new norm (MAE's code), or the class token behind the backbone's ("cls").
        head_std: of the linear layer's weights before the first step.
        drop_path: stochastic depth of the last block.
        mixup: alpha of mixup; 0 turns it off.
        cutmix: alpha of cutmix; 0 turns it off. With both on, each batch flips a coin.
        smoothing: of the labels.
        erase: probability of erasing a rectangle of an image with noise.
    """

    pool: Pool = "mean"
    head_std: NonNegative = 2e-5
    drop_path: BelowOne = 0.1
    mixup: Weight = 0.8
    cutmix: Weight = 1.0
    smoothing: BelowOne = 0.1
    erase: Probability = 0.0

    @property
    def title(self) -> str:
        return "finetune"

    @property
    def row(self) -> tuple[str, ...]:
        return ("",)

    @property
    def least(self) -> int:
        return 1

    def changes(self) -> dict[str, Any]:
        return {"drop_path": self.drop_path, "final_norm": self.pool == "cls"}

    def model(self, backbone: nn.Module, classes: int) -> nn.Module:
        freeze(backbone, "all")
        return Classifier(backbone, classes, how=self.pool, head_std=self.head_std)

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        assert isinstance(model, Classifier)
        layers = Layers(model.layer_of, model.encoder.depth, optim.layer_decay) if optim.layer_decay else None
        return param_groups(
            model, weight_decay=optim.weight_decay, layers=layers, no_decay=spared(model, optim, default=None)
        )

    def step(self, feed: Feed) -> StepFn:
        """Return the step: erase, mix, compare. Mixup pairs an image with its mirror in the batch, whose size must be even."""
        mixes = self.mixup > 0 or self.cutmix > 0
        if mixes and feed.micro % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a forward pass, which has {feed.micro}: make batch or run.device_batch even"
            )
        mix = Mixup(self.mixup, self.cutmix, label_smoothing=self.smoothing, num_classes=feed.classes)
        erase = RandomErasing(self.erase, mode="pixel", device=feed.device)

        def step(model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
            images, truth = normalize(batch.image, feed.statistics), batch.label
            if self.erase:
                images = erase(images)
            if mixes:
                images, truth = mix(images, truth)
            return F.cross_entropy(model(images), truth, label_smoothing=0.0 if mixes else self.smoothing), {}

        return step


@dataclass(frozen=True, kw_only=True)
class Partial(Finetune):
    """Only the last blocks train, with the settings of fine-tuning (MAE, A.1 and figure 9). What the paper leaves open is an option.

    The frozen blocks leave nothing for the backward pass. Layer decay, where there is any, counts from the top as in fine-tuning.

    Args:
        tune_blocks: how many of the last blocks; "half": the MLP of the last one, with its norm; "all": every parameter, the stem's too.
        tune_norm: whether the final norm trains too, beside the head. With pool "mean" it is new, so it does unless told otherwise.
        frozen_drop_path: whether the frozen blocks drop paths as they would in fine-tuning; by default they compute what pretraining left.
    """

    tune_blocks: Tune
    tune_norm: bool = True
    frozen_drop_path: bool = False

    @property
    def title(self) -> str:
        return f"partial-{self.tune_blocks}"

    def model(self, backbone: nn.Module, classes: int) -> nn.Module:
        freeze(backbone, self.tune_blocks, norm=self.tune_norm)
        model = Classifier(
            backbone, classes, how=self.pool, head_std=self.head_std, frozen_eval=not self.frozen_drop_path
        )
        model.fc_norm.requires_grad_(self.tune_norm)
        return model


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear probes behind a batch norm, on frozen features: a row of them in one run (MAE, A.1 and table 10).

    Args:
        rates: learning rates of the row, as factors of the config's peak rate.
        pools: what is probed behind the encoder's final norm: "cls", the class token, or "mean", the mean of the patch tokens; each at each rate.
    """

    rates: tuple[Rate, ...] = (1.0,)
    pools: tuple[Pool, ...] = ("cls",)

    def __post_init__(self) -> None:
        if not self.rates or not self.pools or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError(
                f"rates {self.rates}, pools {self.pools}: give different rates above 0 and at least one pooling"
            )

    @property
    def title(self) -> str:
        return "linear"

    @property
    def row(self) -> tuple[str, ...]:
        return tuple(self.probes())

    def probes(self) -> dict[str, tuple[float, Pool]]:
        """Return name -> (rate, pooling): "cls_x0p1" for a tenth of the peak rate (a dot would part the names of a parameter)."""
        return {f"{pool}_x{rate:g}".replace(".", "p"): (rate, pool) for pool in self.pools for rate in self.rates}

    @property
    def least(self) -> int:
        """Return two: the variance of one feature vector is nothing."""
        return 2

    def changes(self) -> dict[str, Any]:
        return {}

    def model(self, backbone: nn.Module, classes: int) -> nn.Module:
        return ProbeRow(backbone, classes, probes={name: pool for name, (_, pool) in self.probes().items()})

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """Return each probe's groups at its own rate."""
        if optim.layer_decay:
            raise ValueError(f"layer_decay = {optim.layer_decay}, but a linear probe has no layers: leave it out")
        assert isinstance(model, ProbeRow)
        return [
            {**group, "lr_scale": rate, "name": f"{name}_{group['name']}"}
            for name, (rate, _) in self.probes().items()
            for group in param_groups(
                model.probes[name],
                weight_decay=optim.weight_decay,
                no_decay=spared(model.probes[name], optim, default=None),
            )
        ]

    def step(self, feed: Feed) -> StepFn:
        def step(model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
            losses = row_losses(model(normalize(batch.image, feed.statistics)), batch.label)
            return losses.sum(), {"best_probe_loss": losses.detach().min()} if at.logs else {}

        return step


def row_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each probe, (K,), for scores (K, B, C) and labels (B,)."""
    k, b, _ = scores.shape
    each = F.cross_entropy(scores.flatten(0, 1), labels.repeat(k), reduction="none")
    return each.view(k, b).mean(dim=1)


PROTOCOLS: Mapping[str, Callable[..., ClassifyProtocol]] = {"finetune": Finetune, "partial": Partial, "linear": Linear}
