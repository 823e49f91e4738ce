"""The steps of pretraining and of all classifiers read no tensor's value and no data-dependent shape.

torch's dispatcher reports such reads.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mae_transfer.config import members, validate
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.data.loader import Key
from mae_transfer.data.maps import MapBatch
from mae_transfer.data.rand_augment import APPLY
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.loop import Step
from mae_transfer.engine.state import LoopConfig
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.metrics.accuracy import hits
from mae_transfer.models.dvae import DVAE
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.targets import AnyTarget
from mae_transfer.tasks.classify import Classify, ClassifyConfig
from mae_transfer.tasks.joint import JointConfig, JointEmbedding
from mae_transfer.tasks.protocols import Feed, Finetune, LinearProbe, Partial
from mae_transfer.tasks.segment import segmenter_loss
from mae_transfer.tasks.segment_protocols import SegmentProbe, UperNet
from mae_transfer.tasks.targets import open_target
from mae_transfer.tasks.tokenizer import Tokenizer, TokenizerConfig

WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::bincount",
}


class Waiting(TorchDispatchMode):
    """Collects the operators for which a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        indices = args[1] if name in {"aten::index", "aten::index_put_", "aten::index_put"} else ()
        if name in WAITING or any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


REFERENCES = {"basis": "random:4", "tokenizer": "random:16/4", "teacher": "random:ViT-Ti/8"}


@pytest.mark.parametrize("part", members(AnyTarget).values(), ids=lambda part: part.__name__)
@pytest.mark.parametrize(
    ("corrupt", "kind"), [(None, "self"), (None, "cross"), ("mask_token", "self"), ("bert", "self")]
)
def test_a_step_of_the_mae_never_waits(part, corrupt, kind):
    encoder = ViTConfig(size=None, dim=24, depth=2, heads=2, patch=8, image_size=32, drop_path=0.5)
    cfg = part(**{key: value for key, value in REFERENCES.items() if key in part.model_fields})
    target = open_target(cfg, encoder, IMAGENET)
    decoder = DecoderConfig(kind=kind, depth=1, dim=16, heads=2)
    model = MAE(MAEConfig(encoder=encoder, decoder=decoder, corrupt=corrupt), target.dim)
    order = torch.rand(2, 16).argsort(dim=1)
    views = tuple(torch.randint(0, 256, (2, 3, view.size, view.size), dtype=torch.uint8) for view in target.views)
    batch = Batch(
        torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        views,
        Mask(order[:, :6], order[:, 6:], order[:, 6:10]),
        None,
        torch.arange(2),
    )
    with Waiting() as waiting:
        truth = target(batch, batch.mask.ids_predicted)
        prediction = model(normalize(batch.image), batch.mask)
        target.metrics(prediction.detach(), truth)
        target.loss(prediction, truth).mean().backward()
    assert not waiting.seen


DISTILL = {"name": "distill", "out": 12, "hidden": 8, "bottleneck": 4}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dino": {"objective": DISTILL},
    "ibot": {"objective": DISTILL | {"patches": "masked"}, "mask": {}},
    "esvit": {"objective": DISTILL | {"patches": "matched", "shared": False}},
    "moco_v3": {"objective": {"name": "contrast", "out": 4, "hidden": 8}},
    "moby": {"objective": {"name": "contrast", "out": 4, "hidden": 8, "queue": 6}},
}


@pytest.mark.parametrize("system", OBJECTIVES)
def test_a_step_of_joint_embedding_never_waits(system):
    """With flips and colours, the teacher, the figures of a log line, and the move of centre or queue."""
    objective = OBJECTIVES[system]["objective"]
    cfg = validate({
        "scale": "mini", "epochs": 1.0, "batch": 4, "optim": {"lr": 1e-3}, "ema_decay": 0.9,
        "run": {"device": "cpu", "augment_on": "device"},
        "data": {"train": {"name": "shapes", "size": 16, "length": 4}, "val": {"name": "shapes", "size": 16},
            "size": 16, "views": {"narrow": 1, "narrow_size": 8} if objective["name"] == "distill" else {"narrow": 0}},
        "model": {"encoder": {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 16}},
        **OBJECTIVES[system],
    }, JointConfig, where="test")  # fmt: skip
    task = JointEmbedding(cfg, Dist(torch.device("cpu")))
    task.open()
    task.prepare(LoopConfig(steps=1, steps_per_epoch=1, global_batch=4))
    task.held()
    batch = task.training_samples()[[Key(0, image, 0) for image in range(4)]].batch
    teacher = copy.deepcopy(task.joint).eval()
    with Waiting() as waiting:
        task.loss(task.joint, batch, Step(0, 0, True, teacher))[0].backward()
    assert not waiting.seen
    assert not task.objective.pending


def test_a_step_of_the_tokenizer_never_waits():
    cfg = TokenizerConfig.model_validate({
        "scale": "mini", "epochs": 1.0, "batch": 2, "optim": {"lr": 1e-3},
        "data": {"train": {"name": "shapes"}, "size": 16},
        "model": {"codes": 8, "groups": 2, "blocks": 1, "width": 8, "decoder_input": 8},
        "tau": {"start": 1.0, "end": 0.0625, "epochs": "60%"}, "kl": {"start": 0.0, "end": 6.6, "epochs": "2%"},
    })  # fmt: skip
    task = Tokenizer(cfg, Dist(torch.device("cpu")))
    task.prepare(LoopConfig(steps=1, steps_per_epoch=1, global_batch=2))
    batch = Batch(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), (), None, None, torch.arange(2))
    with Waiting() as waiting:
        task.loss(DVAE(cfg.model), batch, Step(0, 0, False))[0].backward()
    assert not waiting.seen


@pytest.mark.parametrize(
    "protocol",
    [
        Finetune(erase=0.9, drop_path=0.5),
        Finetune(mixup=0, cutmix=0),
        Partial(tune_blocks=1),
        LinearProbe(rates=(0.1, 1.0)),
        LinearProbe(heads=("efficient", "cross"), tokens=("patches", "all"), queries=4, head_width=8),
    ],
)
def test_a_step_of_classification_never_waits(protocol):
    encoder = ViTConfig(size=None, dim=24, depth=2, heads=2, patch=8, image_size=16, **protocol.changes())
    model = protocol.model(ViT(encoder), 5).train()
    batch = Batch(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), (), None, torch.arange(4), torch.arange(4))
    step = protocol.step(Feed(IMAGENET, 5, 4, torch.device("cpu")))
    with Waiting() as waiting:
        step(model, batch, Step(0, 0, False))[0].backward()
        hits(model(batch.image.float()), batch.label)
    assert not waiting.seen


def test_rand_augment_on_the_device_never_waits():
    """All kinds of operations, before a step of fine-tuning."""
    cfg = validate({
        "scale": "mini", "epochs": 1.0, "batch": 4, "optim": {"lr": 1e-3}, "backbone": {"reference": "random:ViT-Ti/8"},
        "run": {"device": "cpu", "augment_on": "device"},
        "data": {"train": {"name": "shapes", "size": 16, "length": 4}, "val": {"name": "shapes", "size": 16},
            "size": 16, "augmentation": {"name": "rand_augment", "policy": "rand-m9-n14-p1-inc1-t3aw"}},
    }, ClassifyConfig, where="test")  # fmt: skip
    task = Classify(cfg, Dist(torch.device("cpu")))
    task.open()
    task.prepare(LoopConfig(steps=1, steps_per_epoch=1, global_batch=4))
    model, batch = task.model(), task.training_samples()[[Key(0, image, 0) for image in range(4)]].batch
    assert {kind for kind, _ in batch.operations.kinds} == set(APPLY)
    with Waiting() as waiting:
        task.loss(model, batch, Step(0, 0, False))[0].backward()
    assert not waiting.seen


@pytest.mark.parametrize("protocol", [UperNet(channels=8, relative_positions="per_block"), SegmentProbe()])
def test_a_step_of_segmentation_never_waits(protocol):
    encoder = ViTConfig(size=None, dim=24, depth=4, heads=2, patch=8, image_size=32, **protocol.changes())
    model = protocol.model(ViT(encoder), 5).train()
    labels = torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8)
    labels[0, :4] = 255
    batch = MapBatch(
        torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        labels,
        torch.tensor([[32, 32], [20, 32]]),
        torch.arange(2),
    )
    for logs in (False, True):
        with Waiting() as waiting:
            segmenter_loss(model, batch, Step(0, 0, logs), statistics=IMAGENET)[0].backward()
        assert not waiting.seen


def test_waiting_is_seen():
    x = torch.arange(4.0)
    with Waiting() as waiting:
        _ = x.sum().item(), x[x > 1], x.nonzero()
    assert waiting.seen[0] == "aten::_local_scalar_dense"
    assert "aten::index" in waiting.seen
    assert "aten::nonzero" in waiting.seen
