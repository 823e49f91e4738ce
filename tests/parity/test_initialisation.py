"""Initial weights of every method: rescaling against timm's BEiT, the other distributions against float64 formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import init_weights_vit_moco
from torch import Tensor, nn

from mae_transfer.config import load
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.data import DataConfig, training_views
from mae_transfer.engine.optim import param_groups, peak_lr, select_exempt
from mae_transfer.engine.schedule import lr_at
from mae_transfer.interfaces import ViewSpec
from mae_transfer.models.initialize import rescale_by_depth
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.joint import JointConfig
from mae_transfer.tasks.pretrain import PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
CUT = 0.5396  # standard deviation of a normal distribution that is cut at one standard deviation, over its own


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mae(init: str, *, depth: int = 0, seed: int = 0, **encoder: object) -> MAE:
    torch.manual_seed(seed)
    fields = {
        "size": None,
        "dim": 128,
        "depth": 3,
        "heads": 4,
        "patch": 8,
        "image_size": 64,
        "init": init,
        "positions": "learned",
    } | encoder
    corrupt = None if depth else "mask_token"
    return MAE(
        MAEConfig(
            encoder=ViTConfig.model_validate(fields),
            decoder=DecoderConfig(depth=depth, dim=64, heads=4),
            corrupt=corrupt,
        ),
        96,
    )


def is_cut(x: Tensor, std: float) -> bool:
    """Return whether x looks like a normal distribution with this std, truncated at one standard deviation."""
    return bool(x.abs().max() <= std) and x.std().item() == pytest.approx(CUT * std, rel=0.1)


def is_normal(x: Tensor, std: float) -> bool:
    return bool(x.abs().max() > 2 * std) and x.std().item() == pytest.approx(std, rel=0.1)


def is_uniform(x: Tensor, bound: float) -> bool:
    return bool(x.abs().max() <= bound) and x.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def xavier(weight: Tensor) -> float:
    return float((6 / (len(weight) + weight[0].numel())) ** 0.5)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def test_mae_draws_xavier_weights_and_leaves_the_patch_bias_to_torch() -> None:
    model = mae("mae", depth=2, positions="fixed")
    for layer in linears(model).values():
        assert is_uniform(layer.weight, xavier(layer.weight))
        assert not layer.bias.any()
    proj = model.encoder.patch_embed.proj
    assert is_uniform(proj.weight, xavier(proj.weight))
    assert is_uniform(proj.bias, 192**-0.5)  # 3 * 8 * 8 inputs; zeros before
    assert is_normal(model.encoder.cls_token, 0.02)
    assert is_normal(model.decoder.mask_token, 0.02)


def test_beit_draws_cut_normals_and_divides_by_the_root_of_twice_the_layer() -> None:
    model = mae("beit")
    encoder = model.encoder
    for name, layer in linears(model).items():
        scale = (2 * (int(name.split(".")[2]) + 1)) ** 0.5 if name.endswith(("attn.proj", "mlp.fc2")) else 1.0
        assert is_cut(layer.weight, 0.02 / scale)
        assert not layer.bias.any()
    assert is_cut(encoder.patch_embed.proj.weight, 0.02)
    assert not encoder.patch_embed.proj.bias.any()
    assert all(is_cut(token, 0.02) for token in (encoder.cls_token, model.mask_token, encoder.pos_embed))


def test_the_rescaling_is_timms() -> None:
    theirs = timm.create_model(
        "beit_base_patch16_224", img_size=64, patch_size=8, embed_dim=128, depth=3, num_heads=4, num_classes=0
    )
    ours = nn.ModuleDict(
        {"blocks": nn.ModuleList(nn.ModuleDict({"attn": b.attn, "mlp": b.mlp}) for b in theirs.blocks)}
    )
    before = {name: p.clone() for name, p in theirs.named_parameters()}
    rescale_by_depth(ours)
    mine = {name: p.clone() for name, p in theirs.named_parameters()}
    theirs.load_state_dict(before, strict=False)
    theirs.fix_init_weight()
    assert all(torch.equal(mine[name], p) for name, p in theirs.named_parameters())
    assert torch.equal(before["blocks.2.mlp.fc2.weight"] / 6**0.5, mine["blocks.2.mlp.fc2.weight"])


def test_simmim_is_beit_but_for_its_prediction_which_torch_draws() -> None:
    simmim, beit = mae("simmim"), mae("beit")
    assert is_uniform(simmim.decoder.pred.weight, 128**-0.5)
    assert is_uniform(simmim.decoder.pred.bias, 128**-0.5)
    for (name, a), b in zip(simmim.named_parameters(), beit.parameters(), strict=True):
        assert name.startswith("decoder") or torch.equal(a, b)


def test_maskfeat_draws_normals_with_a_bias_of_002_and_does_not_rescale() -> None:
    model = mae("maskfeat")
    for name, layer in linears(model).items():
        assert is_normal(layer.weight, 0.02)
        assert (layer.bias == (0.0 if name == "decoder.pred" else 0.02)).all()
    for name, norm in model.named_modules():
        if isinstance(norm, nn.LayerNorm):
            assert (norm.bias == (0.0 if name == "encoder.norm" else 0.02)).all()
    assert is_normal(model.encoder.patch_embed.proj.weight, 0.02)
    assert is_uniform(model.encoder.patch_embed.proj.bias, 192**-0.5)
    assert all(is_normal(token, 0.02) for token in (model.encoder.cls_token, model.mask_token, model.encoder.pos_embed))


def test_the_vit_papers_code_draws_query_key_and_value_apart_and_predicts_nothing_at_first() -> None:
    model = mae("vit")
    for name, layer in linears(model).items():
        if name == "decoder.pred":
            assert not layer.weight.any()
        elif name.endswith("qkv"):
            assert all(is_uniform(part, xavier(part)) for part in layer.weight.chunk(3))
        else:
            assert is_uniform(layer.weight, xavier(layer.weight))
        assert layer.bias.std().item() == pytest.approx(1e-6, rel=0.3) if ".mlp." in name else not layer.bias.any()
    weight = model.encoder.patch_embed.proj.weight
    assert weight.std().item() == pytest.approx(192**-0.5, rel=0.05)
    assert weight.abs().max() <= 2.28 * 192**-0.5  # cut at two standard deviations, then rescaled
    assert not model.encoder.cls_token.any()
    assert is_normal(model.encoder.pos_embed, 0.02)


def test_dino_draws_normals_and_leaves_the_patch_projection_to_torch() -> None:
    model = mae("dino").encoder
    for layer in linears(model).values():
        assert is_normal(layer.weight, 0.02)
        assert not layer.bias.any()
    proj = model.patch_embed.proj
    assert is_uniform(proj.weight, 192**-0.5)
    assert is_uniform(proj.bias, 192**-0.5)
    assert all(is_normal(token, 0.02) for token in (model.cls_token, model.pos_embed))


def test_moco_v3_draws_query_key_and_value_apart_and_almost_no_class_token() -> None:
    """As timm's init_weights_vit_moco; class token and patch projection are MoCo v3's own."""
    model = mae("moco-v3", positions="fixed").encoder
    for name, layer in linears(model).items():
        parts = layer.weight.chunk(3) if name.endswith("qkv") else (layer.weight,)
        theirs = nn.Linear(layer.in_features, layer.out_features)
        init_weights_vit_moco(theirs, name)
        assert all(is_uniform(part, xavier(part)) for part in parts)
        assert theirs.weight.abs().max().item() == pytest.approx(layer.weight.abs().max().item(), rel=1e-2)
        assert not layer.bias.any()
    proj = model.patch_embed.proj
    assert is_uniform(proj.weight, (6 / (192 + 128)) ** 0.5)
    assert not proj.bias.any()
    assert is_normal(model.cls_token, 1e-6)


@pytest.mark.parametrize("name", ["dino_vit_small", "ibot_vit_base", "moco_v3_vit_small", "moco_v3_vit_base"])
def test_joint_embedding_at_the_papers_scale_begins_as_its_source(name: str) -> None:
    encoder = load(CONFIGS / "pretrain" / f"{name}.py", JointConfig).model.encoder
    assert encoder.init == ("moco-v3" if name.startswith("moco") else "dino")
    assert encoder.positions == ("fixed" if name.startswith("moco") else "learned")
    assert encoder.shape()[2] == 12 if name.startswith("moco") or name.endswith("base") else 6


@pytest.mark.parametrize("options", [{"layer_scale": 0.1}, {"relative_positions": "shared"}])
def test_an_option_of_constant_tensors_moves_no_other_draw(options: dict[str, object]) -> None:
    plain, other = (dict(mae("mae", depth=2, **o).named_parameters()) for o in ({}, options))
    shared = plain.keys() & other.keys()
    assert len(shared) > 40
    assert all(torch.equal(plain[name], other[name]) for name in shared)


@pytest.mark.parametrize(("name", "init", "spares"), [
    ("mae_vit_base_16_800e", "mae", set()), ("beit_vit_base", "beit", {"encoder.cls_token"}),
    ("simmim_vit_base", "simmim", {"encoder.cls_token"}),
    ("maskfeat_vit_base", "maskfeat", set()), ("mpp_vit_base", "vit", set()),
])  # fmt: skip
def test_the_configs_begin_and_decay_as_their_sources(name: str, init: str, spares: set[str]) -> None:
    """Matrices, tables and tokens decay, but for BEiT's and SimMIM's class token: their no_weight_decay()."""
    cfg = load(CONFIGS / "pretrain" / f"{name}.py", PretrainConfig)
    assert cfg.model.encoder.init == init
    small = cfg.model.encoder.model_dump() | {"size": None, "dim": 32, "depth": 2, "heads": 2}
    model = MAE(cfg.model.model_copy(update={"encoder": ViTConfig.model_validate(small)}), 8)
    no_decay = select_exempt(model, cfg.optim, default=())
    kept = {
        id(p)
        for group in param_groups(model, weight_decay=0.05, no_decay=no_decay)
        if group["weight_decay"] == 0.0
        for p in group["params"]
    }
    assert {name for name, p in model.named_parameters() if id(p) in kept and p.ndim > 1} == spares


def test_maskfeat_hides_78_of_196_patches_by_blocks_of_15_and_ends_where_it_began() -> None:
    """SlowFast: round(0.4 * 196) patches, blocks of at least a fifth of them; rates per 256 images, 8 shards of 256."""
    cfg = load(CONFIGS / "pretrain" / "maskfeat_vit_base.py", PretrainConfig)
    assert (196 - cfg.mask.visible((14, 14)), cfg.mask.min_block) == (78, 15)
    rates = [
        lr_at(step, schedule=cfg.schedule, peak=peak_lr(cfg.optim, global_batch=2048), steps=300, steps_per_epoch=1)
        for step in (0, 30, 300)
    ]
    assert rates == pytest.approx([8e-6, 1.6e-3, 8e-6])


def views_of(data: DataConfig, image: torch.Tensor, extra: Sequence[ViewSpec] = ()) -> tuple[torch.Tensor, ...]:
    """Return the views of an image by the training augmentation, with a fixed seed."""
    torch.manual_seed(0)
    return training_views(data, extra)(image)


def test_beit_and_simmim_see_images_as_their_commands_do() -> None:
    beit, simmim = (load(CONFIGS / "pretrain" / f"{name}_vit_base.py", PretrainConfig) for name in ("beit", "simmim"))
    assert beit.statistics == simmim.statistics == IMAGENET
    image = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8)
    (bilinear,), (bicubic, lanczos) = (
        views_of(simmim.data, image),
        views_of(beit.data, image, [ViewSpec(112, "lanczos")]),
    )
    assert (bilinear.shape[-1], bicubic.shape[-1], lanczos.shape[-1]) == (224, 224, 112)
    as_mae = simmim.data.model_copy(
        update={"augmentation": simmim.data.augmentation.model_copy(update={"interpolation": "bicubic"})}
    )
    assert not torch.equal(bilinear, views_of(as_mae, image)[0])
    first = lr_at(
        0, schedule=simmim.schedule, peak=peak_lr(simmim.optim, global_batch=512), steps=800, steps_per_epoch=1
    )
    assert first == pytest.approx(5e-7)  # its WARMUP_LR, which it scales with the batch as the rate


def test_what_is_spared_is_there() -> None:
    cfg = load(
        CONFIGS / "pretrain" / "beit_vit_base.py",
        PretrainConfig,
        overrides=["optim.no_decay=('rel_pos_bias','mask_token')"],
    )
    assert select_exempt(mae("beit", relative_positions="shared"), cfg.optim, default=()) == {
        "encoder.rel_pos_bias.0.table",
        "mask_token",
    }
    with pytest.raises(ValueError, match=r"optim\.no_decay names rel_pos_bias, which MAE does not have"):
        select_exempt(mae("beit"), cfg.optim, default=())


def test_detectors_from_scratch_begin_as_in_mimdet() -> None:
    files = sorted((CONFIGS / "detect").glob("*scratch*.py"))
    assert len(files) == 6
    assert {load(path, DetectConfig).backbone.encoder.init for path in files} == {"beit"}  # type: ignore[union-attr]
