"""Parameter groups: complete, disjoint, equal to timm's, and loud where layer decay would do nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from mae_transfer.config import validate
from mae_transfer.engine.optim import AdamW, Layers, OptimConfig, param_groups, peak_lr

DEPTH = 3


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=DEPTH, num_classes=7, img_size=32)


def timm_layer(name: str) -> int:
    """timm gives the final norm the last block's layer; the papers give it the head's."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block or name.startswith("norm."):
        return int(block[1]) + 1 if block else DEPTH
    return DEPTH + 1 if name.startswith("head.") else 0


def table(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}


def test_layer_decay_groups_equal_timms(vit: nn.Module) -> None:
    theirs = param_groups_layer_decay(
        vit, weight_decay=0.05, no_weight_decay_list=vit.no_weight_decay(), layer_decay=0.65
    )
    ours = param_groups(vit, weight_decay=0.05, layers=Layers(timm_layer, DEPTH, 0.65))
    expected = table(vit, theirs)
    assert table(vit, ours).keys() == expected.keys()
    assert all(value == pytest.approx(expected[name], rel=1e-12) for name, value in table(vit, ours).items())


def test_scale_is_one_after_the_blocks_and_smallest_in_the_stem(vit: nn.Module) -> None:
    scales = table(vit, param_groups(vit, weight_decay=0.05, layers=Layers(timm_layer, DEPTH, 0.5)))
    assert scales["head.weight"] == (0.05, 1.0)
    assert scales["pos_embed"] == (0.0, 0.5 ** (DEPTH + 1))
    assert scales["blocks.2.mlp.fc1.weight"] == (0.05, 0.5)


def test_every_trainable_parameter_is_in_exactly_one_group_tied_and_frozen_ones_included() -> None:
    model = nn.ModuleDict(
        {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "scale": nn.ParameterList([nn.Parameter(torch.ones(()))])}
    )
    model["b"].weight = model["a"].weight
    model["b"].bias.requires_grad_(False)
    grouped = [id(p) for group in param_groups(model, weight_decay=0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in (model["a"].weight, model["a"].bias, model["scale"][0]))


def test_a_backbone_inside_a_larger_model_keeps_its_no_weight_decay_names(vit: nn.Module) -> None:
    model = nn.ModuleDict({"backbone": vit, "neck": nn.Conv2d(3, 3, 1)})
    decays = table(model, param_groups(model, weight_decay=0.05))
    assert decays["backbone.pos_embed"] == decays["backbone.cls_token"] == (0.0, 1.0)
    assert decays["neck.weight"] == (0.05, 1.0)
    decays = table(model, param_groups(model, weight_decay=0.05, no_decay=("neck.weight",)))
    assert decays["backbone.pos_embed"] == (0.05, 1.0)
    assert decays["neck.weight"] == (0.0, 1.0)


def test_what_would_silently_do_nothing_is_an_error(vit: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"matches no parameter in layers \[1, 2, 3\]"):
        param_groups(
            vit, weight_decay=0.05, layers=Layers(lambda name: 0 if "embed" in name else DEPTH + 1, DEPTH, 0.65)
        )
    with pytest.raises(ValueError, match=r"not within 0\.\.3"):
        param_groups(vit, weight_decay=0.05, layers=Layers(timm_layer, DEPTH - 1, 0.65))
    with pytest.raises(ValueError, match="'pos_embedding'"):
        param_groups(vit, weight_decay=0.05, no_decay=("pos_embedding",))
    with pytest.raises(ValueError, match="everything is frozen"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0.05)


def test_a_layer_that_is_wholly_frozen_counts_as_matched() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2), nn.Linear(2, 2))
    names = [
        group["name"]
        for group in param_groups(model, weight_decay=0.1, layers=Layers(lambda name: int(name[0]), 1, 0.5))
    ]
    assert names == ["layer_01_decay", "layer_01_no_decay", "layer_02_decay", "layer_02_no_decay"]


def test_peak_rate_is_the_base_rate_times_the_batch_over_256() -> None:
    assert peak_lr(OptimConfig(blr=1.5e-4), global_batch=4096) == pytest.approx(2.4e-3)
    assert peak_lr(OptimConfig(lr=1e-4), global_batch=4096) == 1e-4


@pytest.mark.parametrize("rates", [{}, {"blr": 1e-3, "lr": 1e-3}])
def test_both_rates_or_none_is_an_error(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="set exactly one of them"):
        OptimConfig(**rates)


def test_the_algorithm_takes_its_own_options_and_no_others() -> None:
    cfg = validate({"algorithm": {"name": "adamw", "betas": (0.9, 0.95)}, "blr": 1e-3}, OptimConfig, where="test")
    optimizer = cfg.algorithm.build(param_groups(nn.Linear(2, 2), weight_decay=0.05), lr=0.1)
    assert [(g["betas"], g["fused"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ((0.9, 0.95), True, 0.05),
        ((0.9, 0.95), True, 0.0),
    ]
    with pytest.raises(ValueError, match="did you mean 'betas'"):
        validate({"algorithm": {"name": "adamw", "beta": (0.9, 0.95)}, "blr": 1e-3}, OptimConfig, where="test")
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        validate({"algorithm": {"name": "adam"}, "blr": 1e-3}, OptimConfig, where="test")


def test_fused_adamw_equals_the_written_formula() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False).double()
    optimizer = AdamW().build(param_groups(layer, weight_decay=0.05), lr=0.1)
    weight, m, v = (
        layer.weight.detach().clone(),
        torch.zeros(3, 4, dtype=torch.float64),
        torch.zeros(3, 4, dtype=torch.float64),
    )
    for t in range(1, 4):
        layer.weight.grad = grad = torch.randn(3, 4, dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        weight = weight * (1 - 0.1 * 0.05) - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("matrices", {"linear.weight"}),
        ("biases", {"linear.weight", "linear.bias"}),
        ("all", {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}),
    ],
)
def test_what_decays_beside_matrices(decay: Any, expected: set[str]) -> None:
    model = nn.Module()
    model.linear, model.norm = nn.Linear(2, 2), nn.LayerNorm(2)
    decayed = {
        id(p)
        for group in param_groups(model, weight_decay=0.1, decay=decay)
        if group["weight_decay"]
        for p in group["params"]
    }
    assert {name for name, p in model.named_parameters() if id(p) in decayed} == expected
