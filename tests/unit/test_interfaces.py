"""interfaces.py: what a new backbone, adapter or target inherits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data._utils.pin_memory import pin_memory

from mae_transfer.adapters import AdaptedBackbone, TapFPNConfig
from mae_transfer.engine.dist import Dist, assemble
from mae_transfer.engine.optim import param_groups
from mae_transfer.interfaces import (
    Adapter,
    Backbone,
    Batch,
    Features,
    ImageTokenizer,
    Maps,
    Mask,
    Objects,
    Target,
    Tensors,
)
from mae_transfer.models.heads import Classifier, Probe, ProbeRow, freeze
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.models.vit import ViTConfig

CPU = Dist(torch.device("cpu"))


class Filters(Backbone):
    """The shortest backbone: patches through one layer, then through a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.depth, self.patch = 32, 4, 16
        self.stem = nn.Conv2d(3, 32, kernel_size=16, stride=16)
        self.mix = nn.Conv2d(32, 32, kernel_size=1)

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        last = self.mix(self.stem(images))
        return Features((last,) * max(1, len(taps)), last.mean((2, 3)))


def test_a_backbone_that_only_computes_maps_serves_probes_fine_tuning_and_pyramids() -> None:
    images, backbone = torch.randn(2, 3, 32, 48), Filters()
    freeze(backbone, "all")
    assert ProbeRow(Filters(), 5, probes={"a": Probe("linear", "cls"), "b": Probe("linear", "mean")})(images).shape == (
        2,
        2,
        5,
    )
    classifier = assemble(Classifier(backbone, 5), dist=CPU)
    classifier(images).sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())
    assert len(param_groups(classifier, weight_decay=0.1)) == 2
    assert backbone.maps() == Maps((32,) * 4, (16,) * 4)
    pyramid = AdaptedBackbone(backbone, TapFPNConfig(fpn=8).build(backbone.maps()))(images)
    assert {name: tuple(level.shape[2:]) for name, level in pyramid.items()} == {
        "p2": (8, 12), "p3": (4, 6), "p4": (2, 3), "p5": (1, 1)
    }  # fmt: skip


def test_what_a_backbone_does_not_support_is_one_error_with_its_remedy() -> None:
    with pytest.raises(ValueError, match="Filters does not say the layer of 'stem.weight': .* without layer decay"):
        freeze(Filters(), 2)
    with pytest.raises(ValueError, match="Filters cannot recompute .* run.checkpoint_activations=False"):
        assemble(Classifier(Filters(), 5), dist=CPU, checkpoint_activations=True)


@pytest.mark.parametrize("base", [Adapter, Backbone, Target, ImageTokenizer])
def test_a_module_without_its_methods_is_refused_when_it_is_made(base: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match=r"abstract.*forward"):
        base()


@dataclass(frozen=True)
class Nested(Tensors):
    label: Tensor
    objects: tuple[Objects, ...]
    sizes: tuple[tuple[int, int], ...]
    mask: Mask | None


def nested() -> Nested:
    objects = Objects(torch.ones(2, 4), torch.arange(2), torch.zeros(2, dtype=torch.bool), None)
    return Nested(torch.arange(3), (objects, objects), ((5, 6), (7, 8)), Mask(torch.zeros(1, 2), torch.ones(1, 2)))


def test_every_tensor_of_a_nested_batch_is_moved_and_the_rest_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = nested()
    moved = batch.to(torch.device("meta"))
    leaves: list[Tensor] = []
    moved.apply(lambda tensor: leaves.append(tensor) or tensor)  # type: ignore[func-returns-value]
    assert [leaf.device.type for leaf in leaves] == ["meta"] * 9
    assert moved.sizes == batch.sizes
    assert moved.objects[0].masks is None
    assert batch.label.device.type == "cpu"
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1)
    pinned = pin_memory((batch, {}))[0]  # as torch's loader pins what a worker delivers
    assert torch.equal(pinned.label, batch.label + 1)
    assert torch.equal(pinned.mask.ids_keep, batch.mask.ids_keep + 1)


def test_the_label_of_a_batch_may_be_of_any_nested_type() -> None:
    label = {"maps": [torch.zeros(1)], "size": Maps((8,), (16,)), "names": ["cat"]}
    moved = Batch(torch.zeros(1), (), None, label, torch.arange(1)).to(torch.device("meta")).label
    assert moved["maps"][0].device.type == "meta"
    assert moved["size"] == label["size"]
    assert isinstance(moved["size"], Maps)
    assert moved["names"] == ["cat"]


def test_a_compiled_model_takes_and_returns_them_in_one_graph() -> None:
    backbone, images = Filters(), torch.randn(2, 3, 32, 48)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, taps=(3,)).maps[0], backbone(images).maps[0])
    mae = MAE(MAEConfig(encoder=ViTConfig(size=None, dim=32, depth=2, heads=2, patch=16, image_size=32)), 5)
    mask = Mask(torch.tensor([[0, 3]]), torch.tensor([[1, 2]]))
    whole = torch.compile(mae, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(images[:1, :, :, :32], mask), mae(images[:1, :, :, :32], mask))
