"""interfaces.py: what a new backbone, adapter or target inherits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mae_transfer.adapters import AdaptedBackbone, TapFPN
from mae_transfer.engine.dist import Dist, assemble
from mae_transfer.engine.optim import param_groups
from mae_transfer.interfaces import Adapter, Backbone, Features, Maps, Target, Tokenizer
from mae_transfer.models.heads import Classifier, ProbeRow, freeze

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
    assert ProbeRow(Filters(), 5, probes={"a": "cls", "b": "mean"})(images).shape == (2, 2, 5)
    classifier = assemble(Classifier(backbone, 5), dist=CPU)
    classifier(images).sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())
    assert len(param_groups(classifier, weight_decay=0.1)) == 2
    assert backbone.maps() == Maps((32,) * 4, (16,) * 4)
    pyramid = AdaptedBackbone(backbone, TapFPN(backbone.maps(), fpn=8))(images)
    assert {name: tuple(level.shape[2:]) for name, level in pyramid.items()} == {
        "p2": (8, 12), "p3": (4, 6), "p4": (2, 3), "p5": (1, 1)
    }  # fmt: skip


def test_what_a_backbone_does_not_support_is_one_error_with_its_remedy() -> None:
    with pytest.raises(ValueError, match="Filters does not say the layer of 'stem.weight': .* without layer decay"):
        freeze(Filters(), 2)
    with pytest.raises(ValueError, match="Filters cannot recompute .* run.checkpoint_activations=False"):
        assemble(Classifier(Filters(), 5), dist=CPU, checkpoint_activations=True)


@pytest.mark.parametrize("base", [Adapter, Backbone, Target, Tokenizer])
def test_a_module_without_its_methods_is_refused_when_it_is_made(base: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match=r"abstract.*forward"):
        base()
