"""Classification protocols: fine-tuning, partial fine-tuning, and probes on a frozen backbone.

A protocol changes the backbone, builds the model, groups its parameters and makes the training step. Its model returns
scores (K, B, C) for K probes, with K = 1 for fine-tuning, so one evaluation serves all protocols.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from mae_transfer.bounds import BelowOne, Few, NonNegative, Probability, Rate, Weight
from mae_transfer.config import Part
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.engine.loop import Step, StepFn
from mae_transfer.engine.optim import Group, Layers, OptimConfig, param_groups, select_exempt
from mae_transfer.interfaces import Backbone, Batch, FeatureBatch, Features
from mae_transfer.models.heads import Classifier, FrozenPool, Head, Pool, Probe, ProbeRow, Tokens, Tune, freeze


class Feed(NamedTuple):
    """What a protocol's training step depends on."""

    statistics: Statistics
    classes: int
    micro: int  # images per device and forward pass
    device: torch.device


class ClassifyProtocol(Part):
    """The interface between the task and a protocol."""

    @property
    def title(self) -> str:
        """Name in tables: "finetune", "partial-4", "linear"."""
        return self.name

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The names of the K scores that the model returns, by the title that the best of them is reported as."""
        return {self.title: ("",)}

    @property
    def row(self) -> tuple[str, ...]:
        """The names of the K scores in order."""
        return tuple(name for names in self.kinds.values() for name in names)

    @property
    def least(self) -> int:
        """The fewest images per forward pass that its batch norms can train on."""
        return 1

    @property
    def mixes(self) -> bool:
        """Whether training mixes the images of a forward pass."""
        return False

    @property
    def reads(self) -> tuple[FrozenPool, ...]:
        """The pools of a frozen backbone if the protocol reads nothing else of an image; otherwise none."""
        return ()

    def changes(self) -> dict[str, Any]:
        """Return the fields of the backbone's architecture that the protocol sets."""
        return {}

    @abstractmethod
    def model(self, backbone: Backbone, classes: int) -> nn.Module:
        """Return the model around a loaded backbone, with the frozen parts frozen."""

    @abstractmethod
    def groups(self, model: Any, optim: OptimConfig) -> list[Group]:
        """Return the optimizer's groups. They contain every trainable parameter once."""

    @abstractmethod
    def step(self, feed: Feed) -> StepFn:
        """Return the training step."""


class _Tuned(ClassifyProtocol):
    """A linear layer on a backbone that trains."""

    pool: Pool = "mean"
    """Features of an image: "mean", the mean of the patch tokens, through a new norm (MAE's code); "cls", the class
    token after the backbone's norm."""
    head_std: NonNegative = 2e-5
    """Standard deviation of the linear layer's initial weights."""
    drop_path: BelowOne = 0.1
    """Stochastic depth rate of the last block."""
    mixup: Weight = 0.8
    """Alpha of mixup; 0 turns it off."""
    cutmix: Weight = 1.0
    """Alpha of cutmix; 0 turns it off. If both are on, each batch picks one of them with equal probability."""
    smoothing: BelowOne = 0.1
    """Label smoothing."""
    erase: Probability = 0.0
    """Probability that a rectangle of an image is replaced by noise."""

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def changes(self) -> dict[str, Any]:
        return {"drop_path": self.drop_path, "final_norm": self.pool == "cls"}

    def groups(self, model: Classifier, optim: OptimConfig) -> list[Group]:
        layers = Layers(model.layer_of, model.encoder.depth, optim.layer_decay) if optim.layer_decay else None
        return param_groups(
            model, weight_decay=optim.weight_decay, layers=layers, no_decay=select_exempt(model, optim, default=None)
        )

    def step(self, feed: Feed) -> StepFn:
        """Return the training step: random erasing, mixup, cross-entropy.

        Mixup pairs image i of a micro-batch with image i from its end, so the size of the micro-batch must be even.
        """
        mixes = self.mixes
        if mixes and feed.micro % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a forward pass, which has {feed.micro}: make batch or "
                "run.device_batch even"
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


class Finetune(_Tuned):
    """Fine-tuning: every parameter trains (MAE, A.1 and table 9)."""

    name: Literal["finetune"] = "finetune"

    def model(self, backbone: Backbone, classes: int) -> nn.Module:
        freeze(backbone, "all")
        return Classifier(backbone, classes, how=self.pool, head_std=self.head_std)


class Partial(_Tuned):
    """Partial fine-tuning: only the last blocks train, with the settings of fine-tuning (MAE, A.1 and figure 9).

    Choices that the paper leaves open are options. The backward pass does not enter the frozen blocks. Layer decay
    counts from the top, as in fine-tuning.
    """

    name: Literal["partial"] = "partial"
    tune_blocks: Tune
    """Number of last blocks to train. "half": the MLP of the last one with its norm. "all": every parameter, including
    the stem."""
    tune_norm: bool = True
    """Whether the final norm trains, too. By default it does: with pool "mean" it is a new layer."""
    frozen_drop_path: bool = False
    """Whether the frozen blocks use stochastic depth. By default they compute what they did after pretraining."""

    @property
    def title(self) -> str:
        return f"partial-{self.tune_blocks}"

    def model(self, backbone: Backbone, classes: int) -> nn.Module:
        freeze(backbone, self.tune_blocks, norm=self.tune_norm)
        model = Classifier(
            backbone, classes, how=self.pool, head_std=self.head_std, frozen_eval=not self.frozen_drop_path
        )
        model.fc_norm.requires_grad_(self.tune_norm)
        return model


class LinearProbe(ClassifyProtocol):
    """Probes on frozen features; one run trains all of them (MAE, A.1 and table 10).

    The best probe of each head is reported under the name of the head.
    """

    name: Literal["linear"] = "linear"
    rates: tuple[Rate, ...] = (1.0,)
    """Learning rates of the probes, as factors of the config's peak rate."""
    pools: tuple[FrozenPool, ...] = ("cls",)
    """What linear probes read after the encoder's final norm: "cls", the class token, "mean", the mean of the patch
    tokens, "cls-4", the class tokens of the last 4 blocks, "cls+mean" or "cls-4+mean". There is a linear probe for each
    pair of pool and rate."""
    heads: tuple[Head, ...] = ("linear",)
    """Kinds of probes: "linear", after a batch norm; "efficient", the attentive probe of Psomas et al. (2506.10178);
    "cross", that of CAPI (2502.08769)."""
    tokens: tuple[Tokens, ...] = ("patches",)
    """What attentive probes read after the encoder's final norm: "patches", or "all", the class token and the patches.
    There is a probe for each head, tokens and rate."""
    queries: Few = 32
    """Number of queries of head "efficient". It divides the width of the backbone."""
    head_width: Few = 64
    """Channels per attention head of head "cross". It divides the width of the backbone."""

    @model_validator(mode="after")
    def _probes_differ(self) -> Self:
        given = {"rates": self.rates, "pools": self.pools, "heads": self.heads, "tokens": self.tokens}
        for name, values in given.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} = {values}: give different {name}, at least one")
        return self

    @property
    def title(self) -> str:
        return ", ".join(self.heads)

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        probes = self.probes().items()
        return {head: tuple(name for name, (_, probe) in probes if probe.head == head) for head in self.heads}

    @property
    def reads(self) -> tuple[FrozenPool, ...]:
        return self.pools if self.heads == ("linear",) else ()

    def probes(self) -> dict[str, tuple[float, Probe]]:
        """Return the rate and the probe by name.

        "cls_x0p1" is linear with a tenth of the peak rate, "cross_patches_x1" is attentive. "p" stands for the dot,
        which would split the name of a parameter.
        """
        found = {}
        for head in self.heads:
            for source in self.pools if head == "linear" else self.tokens:
                for rate in self.rates:
                    name = f"{source}_x{rate:g}" if head == "linear" else f"{head}_{source}_x{rate:g}"
                    found[name.replace(".", "p")] = (rate, Probe(head, source))
        return found

    @property
    def least(self) -> int:
        """Return two: a batch norm cannot estimate a variance from one feature vector."""
        return 2

    def model(self, backbone: Backbone, classes: int) -> nn.Module:
        probes = {name: probe for name, (_, probe) in self.probes().items()}
        return ProbeRow(backbone, classes, probes=probes, queries=self.queries, head_width=self.head_width)

    def groups(self, model: ProbeRow, optim: OptimConfig) -> list[Group]:
        """Return the groups of each probe, with its own rate."""
        if optim.layer_decay:
            raise ValueError(f"optim.layer_decay = {optim.layer_decay}, but a probe has no layers: leave it out")
        return [
            {**group, "lr_scale": rate, "name": f"{name}_{group['name']}"}
            for name, (rate, _) in self.probes().items()
            for group in param_groups(
                model.probes[name],
                weight_decay=optim.weight_decay,
                no_decay=select_exempt(model.probes[name], optim, default=None),
            )
        ]

    def step(self, feed: Feed) -> StepFn:
        def step(model: nn.Module, batch: Batch | FeatureBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
            losses = row_losses(model(inputs(batch, feed.statistics)), batch.label)
            return losses.sum(), {"best_probe_loss": losses.detach().min()} if at.logs else {}

        return step


def inputs(batch: Batch | FeatureBatch, statistics: Statistics) -> Tensor | Features:
    """Return what a model takes: normalised images, or features that were computed before."""
    return batch.features if isinstance(batch, FeatureBatch) else normalize(batch.image, statistics)


def row_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each probe, (K,), for scores (K, B, C) and labels (B,)."""
    k, b, _ = scores.shape
    each = F.cross_entropy(scores.flatten(0, 1), labels.repeat(k), reduction="none")
    return each.view(k, b).mean(dim=1)


AnyProtocol = Annotated[Finetune | Partial | LinearProbe, Field(discriminator="name")]
