"""The benchmark `classify`: training steps of each protocol relative to full fine-tuning, and timm's task as a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mae_transfer.bench.harness import Build, Entry, compared, race
from mae_transfer.bench.work import Mode, Work
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.engine.loop import Step
from mae_transfer.interfaces import Batch
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.protocols import ClassifyProtocol, Feed, Finetune, Linear, Partial

CLASSES = 1000
FINETUNE = "fine-tune"
PEER = "timm.task"
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)


class _Step(nn.Module):
    """The loss of a loader's batch, computed by the model and step of a protocol."""

    def __init__(self, protocol: ClassifyProtocol, work: Work) -> None:
        super().__init__()
        encoder = ViTConfig.model_validate(
            {"size": work.size, "patch": work.patch, "image_size": work.image, **protocol.changes()}
        )
        self.model = protocol.model(ViT(encoder), CLASSES)
        self.step = protocol.step(Feed(IMAGENET, CLASSES, work.batch, torch.device(work.device)))

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile the model, as the task does."""
        self.model.compile()

    def forward(self, batch: Batch) -> Tensor:
        return self.step(self.model, batch, Step(0, 0, False))[0]


class _TimmStep(nn.Module):
    """The same loss with timm: its ViT with mean pooling, its Mixup, its task."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        import timm
        from timm.data.mixup import Mixup
        from timm.loss.cross_entropy import SoftTargetCrossEntropy
        from timm.task import ClassificationTask

        name = f"{work.size}_patch{work.patch}_224"
        model = timm.create_model(name, img_size=work.image, num_classes=CLASSES, global_pool="avg", drop_path_rate=0.1)
        self.mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
        criterion = SoftTargetCrossEntropy()
        self.task = ClassificationTask(model, criterion, device=torch.device(work.device), verbose=False)

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile the model, as in our step."""
        self.task.trainable_module.compile()

    def forward(self, batch: Batch) -> Tensor:
        images, truth = self.mix(normalize(batch.image), batch.label)
        loss: Tensor = self.task(images, truth)["loss"]
        return loss


def _batch(work: Work) -> Batch:
    images = torch.randint(256, (work.batch, 3, work.image, work.image), dtype=torch.uint8, device=work.device)
    labels = torch.randint(CLASSES, (work.batch,), device=work.device)
    return Batch(images, (), None, labels, torch.arange(work.batch))


def ours(protocol: ClassifyProtocol, work: Work) -> Entry:
    """Build a protocol's step."""
    return Entry(_Step(protocol, work), (_batch(work),))


def timms(work: Work) -> Entry:
    """Build timm's step."""
    return Entry(_TimmStep(work), (_batch(work),))


CONTESTANTS: dict[str, Build] = {
    FINETUNE: partial(ours, Finetune()),
    "4 blocks": partial(ours, Partial(tune_blocks=4)),
    "1 block": partial(ours, Partial(tune_blocks=1)),
    "1 probe": partial(ours, Linear()),
    "10 probes": partial(ours, Linear(rates=RATES)),
    PEER: timms,
}


def run(
    work: Work, *, modes: Sequence[Mode], rounds: int, steps: int, contestants: Mapping[str, Build] = CONTESTANTS
) -> list[dict[str, Any]]:
    """Time the contestants and return one record per contestant and mode, for a table or JSON."""
    rows = race(contestants, modes, work, rounds=rounds, steps=steps)
    return [compared(row, rows, work, to=FINETUNE, called="ratio_to_finetune") for row in rows]
