"""Layer decay and weight decay of every ViT-B parameter against a table from BEiT's and MAE's formulas; LARS; mixup."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import LARS, Group, OptimConfig, param_groups
from mae_transfer.interfaces import Batch
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.protocols import Feed, Finetune, LinearProbe, Partial

BLOCK = {
    "norm1.weight": 0.0, "norm1.bias": 0.0, "attn.qkv.weight": 0.05, "attn.qkv.bias": 0.0, "attn.proj.weight": 0.05,
    "attn.proj.bias": 0.0,
    "norm2.weight": 0.0, "norm2.bias": 0.0, "mlp.fc1.weight": 0.05, "mlp.fc1.bias": 0.0, "mlp.fc2.weight": 0.05,
    "mlp.fc2.bias": 0.0,
}  # fmt: skip


def hand_made_table() -> dict[str, tuple[float, float]]:
    """ViT-B/16, layer decay 0.75: stem = layer 0, block i = layer i + 1, the rest = layer 13; 0.75 ** (13 - layer)."""
    stem = {"cls_token": 0.0, "pos_embed": 0.0, "patch_embed.proj.weight": 0.05, "patch_embed.proj.bias": 0.0}
    table = {f"backbone.{name}": (decay, 0.75**13) for name, decay in stem.items()}
    for i in range(12):
        table |= {f"backbone.blocks.{i}.{name}": (decay, 0.75 ** (12 - i)) for name, decay in BLOCK.items()}
    return table | {
        "fc_norm.weight": (0.0, 1.0),
        "fc_norm.bias": (0.0, 1.0),
        "head.weight": (0.05, 1.0),
        "head.bias": (0.0, 1.0),
    }


def table_of(model: nn.Module, groups: list[Group]) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}


@pytest.fixture(scope="module")
def vit_base() -> ViT:
    return ViT(ViTConfig(size="vit_base", image_size=32, final_norm=False))


def test_every_parameter_of_vit_b_has_the_papers_rate_and_decay(vit_base: ViT) -> None:
    protocol = Finetune()
    model = protocol.model(vit_base, 10)
    found = table_of(model, protocol.groups(model, OptimConfig(blr=1e-3, weight_decay=0.05, layer_decay=0.75)))
    expected = hand_made_table()
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(expected[name], rel=1e-12) for name in expected)


@pytest.mark.parametrize(("tune", "blocks"), [(0, 0), (1, 1), (4, 4), (12, 12)])
def test_partial_fine_tuning_trains_the_last_blocks_at_the_rates_of_fine_tuning(
    vit_base: ViT, tune: int, blocks: int
) -> None:
    protocol = Partial(tune_blocks=tune)
    model = protocol.model(vit_base, 10)
    found = table_of(model, protocol.groups(model, OptimConfig(blr=1e-3, weight_decay=0.05, layer_decay=0.75)))
    tuned = tuple(f"backbone.blocks.{i}." for i in range(12 - blocks, 12))
    expected = {
        name: value
        for name, value in hand_made_table().items()
        if not name.startswith("backbone.") or name.startswith(tuned)
    }
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(expected[name], rel=1e-12) for name in expected)


def test_half_a_block_is_the_mlp_of_the_last_one_with_its_norm(vit_base: ViT) -> None:
    model = Partial(tune_blocks="half").model(vit_base, 10)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("backbone.")}
    assert trained == {f"backbone.blocks.11.{name}" for name in BLOCK if name.startswith(("norm2", "mlp"))}


def test_lars_equals_the_formula_and_leaves_vectors_unadapted() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    nn.init.normal_(layer.bias)
    cfg = OptimConfig(algorithm=LARS(momentum=0.9, trust=0.001), lr=2.0, weight_decay=0.0)
    optimizer = cfg.algorithm.build(param_groups(layer, weight_decay=0.0), lr=2.0)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    moments = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(4):
        layer.weight.grad, layer.bias.grad = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
        adapted = 0.001 * weight.norm() / layer.weight.grad.norm() * layer.weight.grad
        moments = [0.9 * moments[0] + adapted, 0.9 * moments[1] + layer.bias.grad]
        weight, bias = weight - 2.0 * moments[0], bias - 2.0 * moments[1]
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-12, atol=1e-12)


class Recorder(nn.Module):
    """Returns fixed logits and keeps the images that it was shown."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images.clone()
        return self.logits


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_images_and_soft_targets_follow_the_formula(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    batch = Batch(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), (), None, labels, torch.arange(4))
    model = Recorder(logits)
    step = Finetune(mixup=mixup, cutmix=cutmix, smoothing=0.1).step(Feed(IMAGENET, 5, 4, torch.device("cpu")))
    loss, _ = step(model, batch, Step(0, 0, False))
    plain = normalize(batch.image)
    if mixup:
        share = ((model.seen - plain.flip(0)) / (plain - plain.flip(0)))[(plain - plain.flip(0)).abs() > 0.5].median()
        torch.testing.assert_close(model.seen, share * plain + (1 - share) * plain.flip(0), rtol=1e-4, atol=1e-4)
    else:
        share = (model.seen == plain).all(dim=1).float().mean()
    assert 0 < share < 1
    smooth = F.one_hot(labels, 5) * 0.9 + 0.1 / 5
    target = share * smooth + (1 - share) * smooth.flip(0)
    assert loss.item() == pytest.approx(-(target * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-4)


def test_without_mixing_the_labels_are_smoothed() -> None:
    logits, labels = torch.randn(3, 5), torch.tensor([0, 4, 2])
    batch = Batch(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), (), None, labels, torch.arange(3))
    step = Finetune(mixup=0, cutmix=0, smoothing=0.2).step(Feed(IMAGENET, 5, 3, torch.device("cpu")))
    target = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    assert step(Recorder(logits), batch, Step(0, 0, False))[0].item() == pytest.approx(
        -(target * logits.log_softmax(1)).sum(1).mean().item()
    )


def train_probes(protocol: LinearProbe, vit: ViT, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of the probes after a few steps of LARS."""
    torch.manual_seed(3)
    model = protocol.model(vit, 5).train()
    cfg = OptimConfig(algorithm=LARS(), lr=1.0, weight_decay=0.0)
    optimizer = cfg.algorithm.build(protocol.groups(model, cfg), lr=1.0)
    step = protocol.step(Feed(IMAGENET, 5, 8, torch.device("cpu")))
    for i, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * 0.9**i
        step(model, batch, Step(i, 0, False))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}


def test_a_row_of_probes_equals_separate_runs() -> None:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=None, dim=16, depth=2, heads=2, patch=8, image_size=16)).eval()
    batches = [
        Batch(
            torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8),
            (),
            None,
            torch.randint(0, 5, (8,)),
            torch.arange(8),
        )
        for _ in range(10)
    ]
    sources = {"linear": ("cls", "mean"), "efficient": ("patches", "all"), "cross": ("all", "patches")}
    options = {"queries": 4, "head_width": 8}
    rates = (0.1, 3.0, 30.0)
    row = LinearProbe(rates=rates, pools=("cls", "mean"), heads=tuple(sources), tokens=("patches", "all"), **options)
    together = train_probes(row, vit, batches)
    for head, of_head in sources.items():
        for place, source in enumerate(of_head):
            for rate in rates if head == "linear" else (3.0,):
                read = {"pools" if head == "linear" else "tokens": (source,)}
                alone = train_probes(LinearProbe(rates=(rate,), heads=(head,), **read, **options), vit, batches)
                for name, value in alone.items():
                    torch.testing.assert_close(
                        together[name.replace("norms.0", f"norms.{place}")], value, rtol=1e-6, atol=1e-6
                    )
    moved = [together[f"probes.cls_x{rate}.weight"] for rate in ("0p1", "3", "30")]
    assert (moved[2] - moved[0]).abs().max() > 1e-3  # the rates make a difference at all
