"""The benchmark `classify`: training steps of each protocol relative to full fine-tuning, and timm's task as a peer."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mae_transfer.bench.harness import Comparison, Contestant, random_images
from mae_transfer.bench.options import Workload
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.engine.loop import Step
from mae_transfer.interfaces import Batch
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.protocols import ClassifyProtocol, Feed, Finetune, LinearProbe, Partial

CLASSES = 1000
FINETUNE = "fine-tune"
PEER = "timm.task"
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)


def build_protocol(protocol: ClassifyProtocol, work: Workload) -> Contestant:
    """Build the model and step of a protocol."""
    encoder = ViTConfig.model_validate(
        {"size": work.size, "patch": work.patch, "image_size": work.image, **protocol.changes()}
    )
    model, batch = protocol.model(ViT(encoder), CLASSES), _draw_batch(work)
    step = protocol.step(Feed(IMAGENET, CLASSES, work.batch, torch.device(work.device)))
    return Contestant(model, lambda: step(model, batch, Step(0, 0, False))[0], blocks=True)


def build_timm(work: Workload) -> Contestant:
    """Build the same step with timm: its ViT with mean pooling, its Mixup, its task."""
    import timm
    from timm.data.mixup import Mixup
    from timm.loss.cross_entropy import SoftTargetCrossEntropy
    from timm.task import ClassificationTask

    name = f"{work.size}_patch{work.patch}_224"
    model = timm.create_model(name, img_size=work.image, num_classes=CLASSES, global_pool="avg", drop_path_rate=0.1)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    task = ClassificationTask(model, SoftTargetCrossEntropy(), device=torch.device(work.device), verbose=False)
    batch = _draw_batch(work)

    def loss() -> Tensor:
        images, truth = mix(normalize(batch.image), batch.label)
        value: Tensor = task(images, truth)["loss"]
        return value

    return Contestant(task, loss, compiled=task.trainable_module)


def _draw_batch(work: Workload) -> Batch:
    labels = torch.randint(CLASSES, (work.batch,), device=work.device)
    return Batch(random_images(work), (), None, labels, torch.arange(work.batch))


COMPARISON = Comparison(
    {
        FINETUNE: partial(build_protocol, Finetune()),
        "4 blocks": partial(build_protocol, Partial(tune_blocks=4)),
        "1 block": partial(build_protocol, Partial(tune_blocks=1)),
        "1 probe": partial(build_protocol, LinearProbe()),
        "10 probes": partial(build_protocol, LinearProbe(rates=RATES)),
        PEER: build_timm,
    },
    "ratio_to_finetune",
    FINETUNE,
)
