"""Self-distillation: the student predicts the teacher's distribution over prototypes, from another view of the image.

DINO (arXiv 2104.14294), and what iBOT (2111.07832) and EsViT (2106.09785) add for patches. The formulas are those of
main_dino.py, main_ibot.py and main_esvit.py.

Legend: V views, the first G of them wide, B batch, K prototypes, M hidden patches of all views, D width of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from mae_transfer.bounds import Between, Count, Factor, Few, NonNegative, ShareOfRun, Whole, Width
from mae_transfer.core.patches import take
from mae_transfer.interfaces import Embedded, Heads, Hidden, Objective, World
from mae_transfer.objectives.heads import PrototypeHead
from mae_transfer.objectives.objective import ObjectiveConfig, Patches, widened

WEIGHTS: dict[Patches | None, tuple[float, float]] = {None: (1.0, 0.0), "masked": (1.0, 1.0), "matched": (0.5, 0.5)}
"""Weights of the losses of images and of patches (iBOT: --lambda1, --lambda2; EsViT: DDINOLoss)."""
EQUAL_SHARES, ONE_PROTOTYPE = 0.995, 0.02
"""Entropies of the teacher above and of its mean below which it has collapsed, as shares of log K."""
SYSTEMS: dict[Patches | None, str] = {None: "DINO", "masked": "iBOT", "matched": "EsViT"}


class DistillConfig(ObjectiveConfig):
    """Cross-entropy between sharpened, centred teacher and student."""

    name: Literal["distill"] = "distill"
    out: Count = 65536
    """Prototypes K (iBOT: 8192)."""
    hidden: Width = 2048
    """Width of the head's MLP."""
    bottleneck: Width = 256
    """Width of the vector that is compared with the prototypes."""
    layers: Few = 3
    """Layers of the head's MLP."""
    fixed_norm: bool = True
    """Whether prototypes keep unit length (--norm_last_layer)."""
    freeze_epochs: NonNegative | ShareOfRun = 1.0
    """Epochs at the start in which the prototypes do not train, or a share of the run ("1%")."""
    student_temperature: Factor = 0.1
    """Temperature of the student."""
    teacher_temperature: Factor = 0.04
    """Temperature of the teacher, after the warm-up."""
    warmup_temperature: Factor = 0.04
    """Temperature of the teacher in the first epoch."""
    warmup_epochs: Whole | ShareOfRun = 0
    """Epochs over which the teacher's temperature moves, linearly, once per epoch; or a share of the run ("30%"), which
    is rounded up to whole epochs."""
    centre_momentum: Between = 0.9
    """Decay of the centre, the average of the teacher's outputs, per optimizer step."""
    patches: Patches | None = None
    """What patches learn. "masked": the student predicts the teacher at the patches that it does not see (iBOT).
    "matched": each patch of the student predicts the teacher's patch with the most similar features in another view
    (EsViT). None: nothing (DINO)."""
    shared: bool = True
    """Whether patches and images have the same head (iBOT); EsViT has two."""
    exported: Literal["average", "trained"] = "average"
    """The encoder that is evaluated and exported: the teacher ("average") or the student ("trained")."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if not self.warmup_epochs and "warmup_temperature" in self.model_fields_set:
            raise ValueError(
                f"warmup_temperature = {self.warmup_temperature} has no effect: set warmup_epochs, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.patches is None and not self.shared:
            raise ValueError("shared = False has no effect: patches have no head (patches = None); leave it out")
        return self

    @property
    def system(self) -> str:
        return SYSTEMS[self.patches]

    @property
    def compares(self) -> Patches | None:
        return self.patches

    def heads(self, dim: int) -> Heads:
        def head() -> PrototypeHead:
            return PrototypeHead(
                dim, hidden=self.hidden, bottleneck=self.bottleneck, out=self.out, layers=self.layers,
                fixed_norm=self.fixed_norm,
            )  # fmt: skip

        image = head()
        if self.patches is None:
            return Heads(image)
        return Heads(image, image if self.shared else head())

    def build(self, world: World) -> Distill:
        return Distill(self, world)

    def check(self, *, batch: int, wide: int, narrow: int, epochs: float) -> None:
        super().check(batch=batch, wide=wide, narrow=narrow, epochs=epochs)
        for name, length in (("warmup_epochs", self.warmup_epochs), ("freeze_epochs", self.freeze_epochs)):
            if not isinstance(length, str) and length > epochs:
                raise ValueError(
                    f"objective.{name} = {length:g} is longer than epochs = {epochs:g}: shorten it, give a share such "
                    "as '30%', or train longer"
                )

    def timed(self, epochs: float) -> Self:
        lengths = {"warmup_epochs": self.warmup_epochs, "freeze_epochs": self.freeze_epochs}
        shares = {
            name: round(float(length.removesuffix("%")) / 100 * epochs, 6)
            for name, length in lengths.items()
            if isinstance(length, str)
        }
        return self.model_copy(update={n: math.ceil(x) if n == "warmup_epochs" else x for n, x in shares.items()})

    def is_live(self, epoch: float) -> bool:
        assert not isinstance(self.freeze_epochs, str)
        return epoch >= self.freeze_epochs

    def temperature(self, epoch: float) -> float:
        """Return the teacher's temperature of a `timed` objective. It changes once per epoch (DINO's np.linspace)."""
        warmup = self.warmup_epochs
        assert not isinstance(warmup, str)
        if epoch >= warmup:
            return self.teacher_temperature
        share = epoch // 1 / max(warmup - 1, 1)
        return self.warmup_temperature + share * (self.teacher_temperature - self.warmup_temperature)


class Distill(Objective):
    """The objective of DistillConfig. It keeps the centres of the teacher's outputs."""

    centres: Tensor  # (1 or 2, K): of images, and of patches

    def __init__(self, cfg: DistillConfig, world: World) -> None:
        super().__init__(world)
        self.cfg = cfg
        self.register_buffer("centres", torch.zeros(1 if cfg.patches is None else 2, cfg.out))

    def forward(self, student: Embedded, teacher: Embedded, hidden: Hidden | None, epoch: float) -> Tensor:
        cfg, means = self.cfg, [widened(teacher.image).mean(dim=(0, 1))]
        on_images, on_patches = WEIGHTS[cfg.patches]
        loss = on_images * self._of_images(student.image, self.sharpened(teacher.image, 0, epoch))
        if cfg.patches is not None:
            assert teacher.patch_mean is not None
            means.append(widened(teacher.patch_mean))
            truth = [self.sharpened(patches, 1, epoch) for patches in teacher.patches]
            if cfg.patches == "masked":
                assert hidden is not None
                loss = loss + on_patches * self._of_masked(student, truth[0], hidden)
            else:
                loss = loss + on_patches * self._of_matched(student, teacher, truth)
        self.pending.append(torch.stack(means))
        return loss

    def move(self, pending: list[Tensor]) -> None:
        mean = self.world.mean(torch.stack(pending).mean(dim=0))
        self.centres.lerp_(mean.to(self.centres.dtype), 1 - self.cfg.centre_momentum)

    def metrics(self, student: Embedded, teacher: Embedded, epoch: float) -> dict[str, Tensor]:
        """Return entropy of the teacher and of its mean, both as shares of log K, the entropy of equal shares.

        A collapse to one prototype has a mean entropy of 0; a collapse to equal shares has an entropy of 1.
        """
        truth, most = self.sharpened(teacher.image, 0, epoch), math.log(self.cfg.out)
        entropy = torch.special.entr(truth).sum(dim=-1).mean() / most
        mean = torch.special.entr(truth.mean(dim=(0, 1))).sum() / most
        return {"teacher_entropy": entropy, "teacher_mean_entropy": mean}

    def collapse(self, figures: Mapping[str, float]) -> str:
        if figures["teacher_entropy"] > EQUAL_SHARES:
            return "the teacher gives all prototypes equal shares; lower objective.teacher_temperature"
        if figures["teacher_mean_entropy"] < ONE_PROTOTYPE:
            return "the teacher gives all images one prototype; raise objective.teacher_temperature, or the batch"
        return ""

    def sharpened(self, output: Tensor, kind: int, epoch: float) -> Tensor:
        """Return the teacher's probabilities (..., K); kind: 0 images, 1 patches."""
        return F.softmax((widened(output) - self.centres[kind]) / self.cfg.temperature(epoch), dim=-1)

    def _cross_entropy(self, student: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropies (...) of student outputs (..., K) and weights of prototypes (..., K).

        The weights need not sum to 1: the entropies of several truths add up.
        """
        logits = widened(student) / self.cfg.student_temperature
        return F.cross_entropy(logits.flatten(0, -2), truth.flatten(0, -2), reduction="none").view(truth.shape[:-1])

    def _of_images(self, student: Tensor, truth: Tensor) -> Tensor:
        """Return the mean over all pairs of a teacher's and another view of the student."""
        wide, whole = len(truth), truth.sum(dim=0)
        losses = [
            self._cross_entropy(view, whole - truth[number] if number < wide else whole).mean()
            for number, view in enumerate(student)
        ]
        return torch.stack(losses).sum() / (wide * (len(student) - 1))

    def _of_masked(self, student: Embedded, truth: Tensor, hidden: Hidden) -> Tensor:
        """Return the mean over the hidden patches of each image, then over images and wide views (iBOT, eq. 2)."""
        views, images = student.features.shape[:2]
        return (self._cross_entropy(student.patches[0], truth) * hidden.weight).sum() / (views * images)

    def _of_matched(self, student: Embedded, teacher: Embedded, truth: list[Tensor]) -> Tensor:
        """Return the mean over all pairs of views, then over the student's patches (EsViT, eq. 3)."""
        places = [F.normalize(widened(tokens), dim=2) for tokens in teacher.tokens]
        losses = []
        for number, (patches, tokens) in enumerate(zip(student.patches, student.tokens, strict=True)):
            own = F.normalize(widened(tokens.detach()), dim=2)
            found = [
                take(true, (own @ place.transpose(1, 2)).argmax(dim=2))
                for other, (place, true) in enumerate(zip(places, truth, strict=True))
                if other != number
            ]
            losses.append(self._cross_entropy(patches, torch.stack(found).sum(dim=0)).mean())
        return torch.stack(losses).sum() / (len(truth) * (len(losses) - 1))
