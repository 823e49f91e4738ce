"""models/vit.py: against timm with copied weights, and what the later wings rely on."""

import pytest
import timm
import torch

from mae_transfer.core.masks import Random
from mae_transfer.interfaces import Backbone, Mask
from mae_transfer.models.attention import attend
from mae_transfer.models.heads import Classifier
from mae_transfer.models.vit import Block, ViT, ViTConfig, run
from mae_transfer.tasks.task import check_skipping

TINY = {"size": None, "dim": 32, "depth": 3, "heads": 4, "patch": 4, "image_size": (16, 24)}


def tiny(**options: object) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig.model_validate(TINY | options))


def randomize(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1}, {"class_token": False}])
def test_features_equal_timm_s(options: dict[str, object]) -> None:
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=(16, 24), patch_size=4, embed_dim=32, depth=3, num_heads=4, num_classes=0,
        class_token=options.get("class_token", True), global_pool="", init_values=options.get("layer_scale"),
    )  # fmt: skip
    ours = tiny(**options).eval()
    theirs.eval()
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())  # same names, by design
    images = torch.randn(2, 3, 16, 24)
    mine = ours(images, taps=(0, 2), norm=True)
    maps = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    for a, b in zip(mine.maps, maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if ours.leading:
        torch.testing.assert_close(mine.cls, theirs(images)[:, 0], rtol=1e-5, atol=1e-5)


def test_relative_positions_with_query_and_value_bias_equal_timm_s_beit() -> None:
    theirs = timm.create_model(
        "beit_base_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=0,
        global_pool="",
        use_rel_pos_bias=False, use_shared_rel_pos_bias=True, init_values=0.1,
    ).eval()  # fmt: skip
    randomize(theirs)
    options = {
        "depth": 2,
        "image_size": 16,
        "positions": "none",
        "relative_positions": "shared",
        "qkv_bias": "qv",
        "layer_scale": 0.1,
    }
    ours = tiny(**options, final_norm=True).eval()
    rename = {"rel_pos_bias.relative_position_bias_table": "rel_pos_bias.0.table"}
    state = {
        rename.get(n, n.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")): p
        for n, p in theirs.named_parameters()
    }
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    norms = [module.eps for module in theirs.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert set(norms) == {1e-6}
    features = ours(images, norm=True)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(features.maps[0].flatten(2).transpose(1, 2), expected[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.cls, expected[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"relative_positions": "shared"},
        {"relative_positions": "per_block", "positions": "none"},
        {"class_token": False},
    ],
)
def test_encoding_all_patches_in_any_order_is_encoding_the_image(options: dict[str, object]) -> None:
    vit = tiny(**options).eval()
    randomize(vit)
    images, grid = torch.randn(2, 3, 16, 24), (4, 6)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    tokens = vit.encode(vit.place(vit.patch_embed(images, order), grid, order), grid, order)[-1]
    expected = vit(images, norm=True).maps[0].flatten(2).transpose(1, 2)
    for row in range(2):
        torch.testing.assert_close(tokens[row, vit.leading :], expected[row, order[row]], rtol=1e-4, atol=1e-5)


def test_visible_tokens_do_not_depend_on_hidden_pixels() -> None:
    vit = tiny().eval()
    order = torch.from_numpy(Random()((4, 6), __import__("numpy").random.default_rng(0)))[None]
    mask = Mask(order[:, :6], order[:, 6:])
    images = torch.randn(1, 3, 16, 24)
    changed = images.clone()
    row, column = divmod(int(mask.ids_masked[0, 0]), 6)
    changed[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 100
    assert torch.equal(vit.patch_embed(images, mask.ids_keep), vit.patch_embed(changed, mask.ids_keep))
    assert not torch.equal(vit.patch_embed(images), vit.patch_embed(changed))


def test_other_sizes_resample_the_positions_and_bad_ones_are_named() -> None:
    vit = tiny()
    assert isinstance(vit, Backbone)
    assert vit(torch.randn(1, 3, 20, 32)).maps[0].shape == (1, 32, 5, 8)
    with pytest.raises(ValueError, match="17x24"):
        vit(torch.randn(1, 3, 17, 24))
    with pytest.raises(ValueError, match=r"taps \(1, 0\)"):
        vit(torch.randn(1, 3, 16, 24), taps=(1, 0))
    with pytest.raises(ValueError, match="blocks 0..2"):
        vit(torch.randn(1, 3, 16, 24), taps=(3,))


def test_the_patch_embedding_is_the_convolution() -> None:
    vit = tiny(channels=5)
    images = torch.randn(2, 5, 16, 24)
    torch.testing.assert_close(
        vit.patch_embed(images), vit.patch_embed.proj(images).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5
    )


def test_every_parameter_has_a_layer_and_unknown_names_raise() -> None:
    vit = tiny(relative_positions="shared", positions="learned")
    layers = {name: vit.layer_of(name) for name, _ in vit.named_parameters()}
    assert set(layers.values()) == {0, 1, 2, 3, 4}
    assert layers["pos_embed"] == layers["patch_embed.proj.bias"] == 0
    assert layers["blocks.1.mlp.fc2.weight"] == 2
    assert layers["norm.weight"] == layers["rel_pos_bias.0.table"] == 4
    assert tiny(relative_positions="per_block").layer_of("rel_pos_bias.1.table") == 2
    with pytest.raises(ValueError, match="'head.weight' is not a parameter"):
        vit.layer_of("head.weight")
    assert vit.no_weight_decay() == {"pos_embed", "cls_token", "rel_pos_bias.0.table"}


@pytest.mark.parametrize("skip", [False, True])
def test_recomputed_activations_give_the_same_gradients_and_drop_path_too(skip: bool) -> None:
    images = torch.randn(2, 3, 16, 24)
    gradients = []
    for recompute in (False, True):
        vit = tiny(drop_path=0.5, skip_dropped=skip).train()
        vit.set_grad_checkpointing(recompute)
        torch.manual_seed(1)
        vit(images, norm=True).maps[0].square().mean().backward()
        gradients.append([p.grad for p in vit.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_blocks_that_skip_dropped_samples_keep_a_fixed_number_of_them_and_their_mean() -> None:
    """Of one branch, the other being zero; each sample has its own bias."""
    count, keep, draws = 8, 6, 400
    for zero in ("mlp.fc2", "attn.proj"):
        block = Block(16, 2, drop_path=0.3, skip_dropped=True)  # 0.3 of 8 is 2.4
        randomize(block)
        for parameter in block.get_submodule(zero).parameters():
            parameter.zero_()
        x, bias = torch.randn(count, 5, 16), torch.randn(count, 2, 5, 5)
        whole = run(block.eval(), x, bias, recompute=False) - x
        times = torch.zeros(count)
        for _ in range(draws):
            added = run(block.train(), x, bias, recompute=False) - x
            kept = added.flatten(1).any(dim=1)
            assert kept.sum() == keep
            torch.testing.assert_close(added[kept], whole[kept] * count / keep)
            times += kept
        assert (times / draws - keep / count).abs().max() < 5 * (0.75 * 0.25 / draws) ** 0.5


def test_the_two_branches_of_a_block_skip_different_samples() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2, drop_path=0.5, skip_dropped=True).train(), torch.randn(32, 5, 16)
    unchanged = (run(block, x, recompute=False) == x).flatten(1).all(dim=1).sum()
    assert 2 <= unchanged <= 14  # 8 of 32 are in neither half; 16 or 0 if the halves were the same or opposite


def test_an_encoder_that_skips_is_the_usual_one_unless_it_trains_with_drop_path() -> None:
    images = torch.randn(4, 3, 16, 24)
    usual, skipping = tiny(drop_path=0.5), tiny(drop_path=0.5, skip_dropped=True)
    assert torch.equal(usual.eval()(images).maps[0], skipping.eval()(images).maps[0])
    skipping.train()(images, norm=True).maps[0].square().mean().backward()
    assert all(p.grad is not None for p in skipping.parameters() if p.requires_grad)
    assert "skip_dropped" not in usual.cfg.model_dump()
    assert ViTConfig.model_validate(skipping.cfg.model_dump()) == skipping.cfg


def test_skipping_that_would_drop_nothing_is_refused() -> None:
    """In the last block, whose rate is the largest."""
    with pytest.raises(ValueError, match="skip_dropped=True has no effect without drop_path; set `drop_path`"):
        tiny(skip_dropped=True)
    vit = tiny(drop_path=0.2, skip_dropped=True)
    check_skipping(vit, 3)  # 0.2 of 3 rounds to 1
    with pytest.raises(ValueError, match=r"of 2 sample\(s\) .* drop none at drop_path = 0.2: raise run.device_batch"):
        check_skipping(vit, 2)
    check_skipping(Classifier(vit.requires_grad_(False), 3), 2)  # frozen: it drops none anyway


@pytest.mark.parametrize("last", [None, 3])
def test_skipping_leaves_as_many_tokens_as_the_block_must_return(last: int | None) -> None:
    block = Block(16, 2, drop_path=0.5, skip_dropped=True).train()
    assert block(torch.randn(4, 5, 16), last=last).shape == (4, last or 5, 16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("has_amx", [False, True])
def test_attention_in_bf16_on_a_cpu_is_the_fused_one(
    bias: bool, has_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae_transfer.models.attention.CPU_HAS_AMX", has_amx)
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    table = torch.randn(1, 4, 9, 9) if bias else None
    with torch.autocast("cpu", torch.bfloat16):
        half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attend(q, k, v, table), rtol=0.05, atol=0.05)


def test_a_dense_encoder_gives_every_trainable_parameter_a_gradient() -> None:
    vit = tiny(class_token=False, final_norm=False, positions="learned")
    vit(torch.randn(1, 3, 16, 24)).maps[0].mean().backward()
    assert [name for name, p in vit.named_parameters() if p.requires_grad and p.grad is None] == []


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="set a size"):
        ViT(ViTConfig(size=None, dim=32))
    with pytest.raises(ValueError, match="heads = 5 does not divide dim = 32"):
        ViT(ViTConfig.model_validate(TINY | {"heads": 5}))
