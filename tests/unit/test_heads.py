"""Classifier and probes: what is frozen stays still, leaves no graph and gets no gradient; what trains gets one."""

from __future__ import annotations

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor

from mae_transfer.core.normalize import IMAGENET
from mae_transfer.models.heads import Classifier, Probe, ProbeRow, Tune, freeze
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.protocols import ClassifyProtocol, Feed, Finetune, LinearProbe, Partial

DEPTH = 4
PROTOCOLS: list[ClassifyProtocol] = [
    Finetune(), Finetune(pool="cls"), *(Partial(tune_blocks=k) for k in (0, "half", 1, 2, DEPTH, "all")),
    Partial(tune_blocks=2, pool="cls"), Partial(tune_blocks=1, tune_norm=False),
    Partial(tune_blocks=1, pool="cls", tune_norm=False),
    LinearProbe(rates=(0.1, 1.0), pools=("cls", "mean")),
    LinearProbe(heads=("efficient", "linear", "cross"), tokens=("patches", "all"), queries=4, head_width=8),
]  # fmt: skip


def vit(protocol: ClassifyProtocol | None = None, relative: str = "none", *, class_token: bool = True) -> ViT:
    torch.manual_seed(0)
    changes = protocol.changes() if protocol else {}
    fields = {
        "size": None,
        "dim": 16,
        "depth": DEPTH,
        "heads": 2,
        "patch": 8,
        "image_size": 16,
        "relative_positions": relative,
        "class_token": class_token,
    }
    return ViT(ViTConfig.model_validate(fields | changes))


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, 16, 16)


@pytest.mark.parametrize("relative", ["none", "shared", "per_block"])
@pytest.mark.parametrize(
    "protocol", PROTOCOLS, ids=lambda p: f"{p.title}-{getattr(p, 'pool', '')}-{getattr(p, 'tune_norm', '')}"
)
def test_every_trainable_parameter_has_a_gradient_and_no_other(protocol: ClassifyProtocol, relative: str) -> None:
    model = protocol.model(vit(protocol, relative), 5).train()
    for parameter in model.parameters():  # a head of zeros would pass no gradient on
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    labels = torch.arange(6) % 5
    for _ in range(20):  # drop path may drop a whole block of such a small batch once
        scores = model(image())
        torch.nn.functional.cross_entropy(scores.flatten(0, -2), labels.repeat(scores.numel() // 30)).backward()
    dead = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not dead
    assert not [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("tune", [0, "half", 1, 3])
def test_the_frozen_trunk_leaves_no_graph_and_drops_no_path(tune: Tune) -> None:
    model = Partial(tune_blocks=tune, drop_path=0.5).model(vit(Finetune(drop_path=0.5)), 5).train()
    frozen = DEPTH - (1 if tune == "half" else int(tune))
    grads: list[bool] = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda module, given, output: grads.append(output.requires_grad))
    model(image())
    assert grads == [i >= frozen for i in range(DEPTH)]
    modes = [
        [part.training for part in block.modules() if isinstance(part, DropPath)] for block in model.backbone.blocks
    ]
    assert all(mode == [i >= frozen] for i, mode in enumerate(modes) if mode)
    with_paths = (
        Partial(tune_blocks=tune, drop_path=0.5, frozen_drop_path=True).model(vit(Finetune(drop_path=0.5)), 5).train()
    )
    assert all(part.training for part in with_paths.backbone.modules())


def test_eval_mode_is_for_all_and_training_comes_back_as_it_was() -> None:
    model = Partial(tune_blocks=1).model(vit(), 5).train()
    before = [part.training for part in model.modules()]
    model.eval()
    assert not any(part.training for part in model.modules())
    assert [part.training for part in model.train().modules()] == before


def test_pooling_is_the_mean_of_the_patches_behind_a_new_norm_or_the_class_token_behind_the_old_one() -> None:
    backbone = vit()
    tokens = backbone.encode(backbone.place(backbone.patch_embed(image()), (2, 2)), (2, 2), norm=False)[0]
    mean, cls = (Classifier(backbone, 5, how=how, head_std=1.0).eval() for how in ("mean", "cls"))
    torch.testing.assert_close(mean(image()), mean.head(mean.fc_norm(tokens[:, 1:].mean(dim=1))))
    torch.testing.assert_close(cls(image()), cls.head(backbone.norm(tokens[:, 0])))


def test_a_probe_is_linear_on_batch_normalised_features_of_the_frozen_encoder() -> None:
    backbone = vit()
    row = ProbeRow(backbone, 5, probes={"a": Probe("linear", "cls"), "b": Probe("linear", "mean")}).train()
    features = backbone(image(), norm=True)
    assert not backbone.training
    for scores, probe, pooled in zip(
        row(image()), row.probes.values(), (features.cls, features.maps[0].mean((2, 3))), strict=True
    ):
        centred = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-6).sqrt()
        torch.testing.assert_close(scores, probe(centred), rtol=1e-4, atol=1e-5)
    assert torch.equal(row.probes["a"].weight, row.probes["b"].weight)


def test_what_attentive_heads_need_of_a_backbone_is_said() -> None:
    for options, message in (
        ({"queries": 3}, "protocol.queries = 3 does not divide the width 16 of the backbone's last map: set a divisor"),
        ({"head_width": 64}, "protocol.head_width = 64 does not divide the width 16"),
    ):
        with pytest.raises(ValueError, match=message):
            LinearProbe(heads=("efficient", "cross"), **{"queries": 4, "head_width": 8, **options}).model(vit(), 5)
    headless = vit(Finetune(), class_token=False)
    probe = LinearProbe(heads=("efficient",), tokens=("all",), queries=4)
    with pytest.raises(ValueError, match="no class token: set protocol.tokens to"):
        probe.model(headless, 5)(image())
    assert LinearProbe(heads=("efficient",), queries=4).model(headless, 5)(image()).shape == (1, 6, 5)
    with pytest.raises(ValueError, match="one patch, so an attentive probe has nothing to choose from"):
        LinearProbe(heads=("cross",), head_width=8).model(vit(), 5)(torch.randn(6, 3, 8, 8))


@pytest.mark.parametrize("tune", [-1, DEPTH + 1])
def test_blocks_that_are_not_there_cannot_be_tuned(tune: int) -> None:
    with pytest.raises(ValueError, match=rf"tune_blocks = {tune}, but the backbone has {DEPTH} blocks"):
        freeze(vit(), tune)


def test_a_backbone_without_class_token_says_which_pooling_it_has() -> None:
    headless = ViT(ViTConfig(size=None, dim=16, depth=1, heads=2, patch=8, image_size=16, class_token=False))
    with pytest.raises(ValueError, match="set pool to 'mean'"):
        Classifier(headless, 5, how="cls")(image())


def test_no_name_of_a_classifier_is_taken_for_another_layer() -> None:
    with pytest.raises(ValueError, match="'neck.weight' is not a parameter"):
        Classifier(vit(), 5).layer_of("neck.weight")


def test_probes_need_different_rates_and_fine_tuning_an_even_batch() -> None:
    with pytest.raises(ValueError, match="different rates"):
        LinearProbe(rates=(1.0, 1.0))
    with pytest.raises(ValueError, match="pair the images of a forward pass, which has 3"):
        Finetune().step(Feed(IMAGENET, 5, 3, torch.device("cpu")))
