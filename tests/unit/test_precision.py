"""Residual stream and head scores stay float32 under autocast, for every option; and the meaning of float32 on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_transfer.arithmetic import FullConv2d, FullLinear, Matmul, float32_products, in_full
from mae_transfer.config import load
from mae_transfer.engine.dist import session
from mae_transfer.interfaces import Features, Mask
from mae_transfer.models.heads import Head, pool
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.models.vit import Block, ViT, ViTConfig
from mae_transfer.tasks import pretrain, segment_protocols
from mae_transfer.tasks.protocols import ClassifyProtocol, Finetune, LinearProbe, Partial

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}
HALVES = [torch.bfloat16, torch.float16]
POSITIONS = [{"positions": kind} for kind in ("none", "fixed", "learned")]
RELATIVE = [{"relative_positions": kind} for kind in ("none", "shared", "per_block")]
OPTIONS = [
    *(a | b | {"class_token": token} for a in POSITIONS for b in RELATIVE for token in (True, False)),
    *(a | {"relative_positions": "decomposed", "class_token": False} for a in POSITIONS),
    *(a | {"windows": 2, "global_blocks": (1,), "class_token": False} for a in POSITIONS),
    *(
        a | extra
        for a in POSITIONS
        for extra in ({"layer_scale": 0.1}, {"drop_path": 0.5}, {"qkv_bias": "qv"}, {"final_norm": False})
    ),
]


def streams(model: nn.Module) -> list[torch.dtype]:
    """Return a list that fills with the type of what enters and leaves each block of the model."""
    seen: list[torch.dtype] = []
    for block in model.modules():
        if isinstance(block, Block):
            block.register_forward_hook(lambda _, given, out: seen.extend((given[0].dtype, out.dtype)))
    return seen


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items())
)
def test_the_residual_stream_of_the_encoder_is_float32(options: dict[str, object], half: torch.dtype) -> None:
    vit = ViT(ViTConfig.model_validate(SMALL | options)).train()
    seen = streams(vit)
    with torch.autocast("cpu", half):
        features = vit(torch.randn(2, 3, 32, 32), taps=(0, 1))
        normed = vit(torch.randn(2, 3, 32, 32), norm=True)
    assert set(seen) == {torch.float32}
    assert len(seen) == 8
    assert {part.dtype for part in (*features.maps, *normed.maps)} == {torch.float32}
    assert features.cls is None or features.cls.dtype == torch.float32


@pytest.mark.parametrize(
    ("corrupt", "depth"), [(None, 2), ("mask_token", 0), ("mask_token", 2), ("bert", 0), ("bert", 2)]
)
@pytest.mark.parametrize("options", POSITIONS, ids=str)
def test_the_residual_stream_of_pretraining_is_float32(
    options: dict[str, object], corrupt: str | None, depth: int
) -> None:
    cfg = {"encoder": SMALL | options, "decoder": {"depth": depth, "dim": 16, "heads": 2}, "corrupt": corrupt}
    model = MAE(MAEConfig.model_validate(cfg), 8)
    seen = streams(model)
    ids = torch.arange(16).repeat(2, 1)
    entered: list[Tensor] = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 32, 32), Mask(ids[:, :4], ids[:, 4:]))
    assert set(seen) == {torch.float32}
    assert len(seen) == 2 * (2 + depth)
    if corrupt == "mask_token" and options["positions"] == "none":
        assert torch.equal(entered[0][:, 5:], model.mask_token.expand(2, 12, -1)), "the mask token is not rounded"


def test_a_model_in_half_precision_keeps_its_type() -> None:
    vit = ViT(ViTConfig.model_validate(SMALL)).bfloat16()
    assert vit(torch.randn(2, 3, 32, 32).bfloat16()).maps[0].dtype == torch.bfloat16


def finer(scores: Tensor) -> bool:
    """Whether scores are float32 and not bfloat16's values."""
    return scores.dtype == torch.float32 and bool((scores.bfloat16().float() != scores).float().mean() > 0.9)


@pytest.mark.parametrize("head", ["efficient", "cross"])
def test_attentive_scores_are_float32(head: Head) -> None:
    protocol = LinearProbe(heads=(head,), tokens=("all",), queries=4, head_width=8)
    model = protocol.model(ViT(ViTConfig.model_validate(SMALL)), 50).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert finer(model(torch.randn(8, 3, 32, 32)))


@pytest.mark.parametrize("how", ["mean", "cls"])
@pytest.mark.parametrize("kind", [Finetune, Partial, LinearProbe])
def test_classification_scores_are_float32(kind: type, how: str) -> None:
    options = {Finetune: {"pool": how}, Partial: {"pool": how, "tune_blocks": 1}, LinearProbe: {"pools": (how,)}}[kind]
    protocol: ClassifyProtocol = kind(**options)
    model = protocol.model(
        ViT(ViTConfig.model_validate(SMALL | {"positions": "none"} | protocol.changes())), 50
    ).train()
    images = torch.randn(8, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(images)
        loss = torch.nn.functional.cross_entropy(scores.view(-1, 50), torch.rand(8, 50).softmax(dim=1))
    assert finer(scores)
    assert loss.dtype == torch.float32


def test_few_of_many_images_have_two_best_classes() -> None:
    """1,000 classes of a head as fine-tuning leaves it: bfloat16 logits tie at the top, float32 ones do not."""
    torch.manual_seed(0)
    model = (
        Finetune(pool="mean", head_std=0.05)
        .model(ViT(ViTConfig.model_validate(SMALL | Finetune().changes())), 1000)
        .eval()
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        best = model(torch.randn(400, 3, 32, 32)).topk(2, dim=1).values
    assert (best[:, 0] == best[:, 1]).sum() == 0
    rounded = best.bfloat16()
    assert (rounded[:, 0] == rounded[:, 1]).sum() > 0


@pytest.mark.parametrize(
    "protocol", [segment_protocols.UperNet(channels=16), segment_protocols.SegmentProbe()], ids=lambda p: p.title
)
def test_segmentation_scores_are_float32(protocol: segment_protocols.SegmentProtocol) -> None:
    encoder = ViT(ViTConfig.model_validate(SMALL | {"depth": 4, "positions": "none"} | protocol.changes()))
    model = protocol.model(encoder, 7).train()
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(torch.randn(2, 3, 32, 32))
    assert len(scores) == len(model.heads())
    assert all(finer(each) for each in scores)


@pytest.mark.parametrize("half", HALVES)
def test_pooling_is_float32_whatever_the_backbone_gives(half: torch.dtype) -> None:
    maps = (torch.randn(3, 8, 7, 7) * 100).to(half)
    features = Features((maps,), maps[:, :, 0, 0])
    torch.testing.assert_close(pool(features, "mean"), maps.float().mean(dim=(2, 3)))
    assert pool(features, "cls").dtype == torch.float32


def test_a_layer_in_full_is_the_layer_and_keeps_its_names() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)
    for layer, x in ((nn.Linear(4, 3), torch.randn(2, 4)), (conv, torch.randn(2, 4, 5, 5))):
        model = nn.Sequential(nn.Identity(), nn.Sequential(layer))
        before, plain, drawn = dict(model.named_parameters()), model(x), torch.get_rng_state()
        in_full(model, "1.0")
        assert torch.equal(torch.get_rng_state(), drawn)
        assert isinstance(model.get_submodule("1.0"), FullLinear | FullConv2d)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), plain)
        assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert nn.Linear(2, 2).double()(torch.ones(1, 2).double()).dtype == torch.float64


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("matmul", "expected"), [("ieee", (False, False)), ("tf32", (True, True))])
def test_a_session_sets_what_float32_means_and_puts_it_back(matmul: Matmul, expected: tuple[bool, bool]) -> None:
    before, seen = flags(), []

    def run() -> None:
        with session("cpu", matmul=matmul):
            seen.append(flags())
            with float32_products("ieee"):
                seen.append(flags())
            seen.append(flags())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert seen == [expected, (False, False), expected]
    assert flags() == before == (False, True), "torch's own default is neither"


def test_a_session_computes_in_ieee_arithmetic_unless_told_otherwise() -> None:
    with session("cpu"):
        assert flags() == (False, False)


@pytest.mark.parametrize("matmul", ["ieee", "tf32"])
def test_a_run_computes_and_records_the_policy_of_its_config(
    matmul: Matmul, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [] if matmul == "ieee" else ["matmul=tf32"]
    cfg = load(CONFIGS / "mini" / "pretrain.py", pretrain.PretrainConfig, overrides=overrides, debug=True)
    seen: list[tuple[bool, bool]] = []
    evaluate = pretrain.Pretrain.evaluate

    def watched(*given: Any) -> dict[str, float]:
        seen.append(flags())
        return evaluate(*given)

    monkeypatch.setattr(pretrain.Pretrain, "evaluate", watched)
    written = pretrain.Pretrain.launch(cfg, tmp_path / "run")
    assert {result.matmul for result in written} == {matmul}
    assert seen == [(matmul == "tf32",) * 2]


def test_the_policy_is_part_of_the_recipe() -> None:
    """Two runs with one digest compute the same numbers."""
    ieee, tf32 = (
        load(CONFIGS / "mini" / "pretrain.py", pretrain.PretrainConfig, overrides=[f"matmul={kind}"])
        for kind in ("ieee", "tf32")
    )
    assert ieee.digest() != tf32.digest()
    assert ieee.recipe_digest() != tf32.recipe_digest()
