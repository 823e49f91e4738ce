"""Windows and relative positions of the encoder: no effect if off or zero, any image size, loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mae_transfer import checkpoints
from mae_transfer.core.positions import relative_bias, relative_index, relative_rows, resample_filters
from mae_transfer.models.attention import (
    attend,
    attend_folded,
    decomposed_bias,
    fold_positions,
    from_windows,
    to_windows,
)
from mae_transfer.models.vit import ViT, ViTConfig

DENSE = {
    "size": None, "dim": 32, "depth": 4, "heads": 4, "patch": 4, "image_size": (16, 24), "class_token": False,
    "final_norm": False,
    "positions": "learned",
}  # fmt: skip
SWITCHED_ON: list[dict[str, Any]] = [
    {"relative_positions": "decomposed"}, {"relative_positions": "shared"}, {"relative_positions": "per_block"},
    {"windows": 6},
    {"windows": 6, "relative_positions": "decomposed"},
    {"windows": 6, "relative_positions": "shared", "global_blocks": (1, 3)},
]  # fmt: skip


def dense(**options: object) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig.model_validate(DENSE | options))


def randomize(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(
    "options", [o for o in SWITCHED_ON if "windows" not in o] + [{"windows": 2, "global_blocks": (0, 1, 2, 3)}]
)
@torch.no_grad()
def test_zero_tables_and_windows_off_change_nothing(options: dict[str, Any]) -> None:
    plain = dense()
    randomize(plain)
    ours = dense(**options)
    missing = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    images = torch.randn(2, 3, 20, 24)
    torch.testing.assert_close(ours(images).maps[0], plain(images).maps[0], rtol=1e-6, atol=1e-6)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.equal(ours(images).maps[0], plain(images).maps[0])


@torch.no_grad()
def test_a_window_that_is_the_image_sees_all_of_it() -> None:
    plain = dense(image_size=24)
    randomize(plain)
    ours = dense(image_size=24, windows=6)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(ours(images).maps[0], plain(images).maps[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_windowed_block_sees_its_window_and_nothing_else() -> None:
    vit = dense(windows=3)
    randomize(vit)
    images = torch.randn(1, 3, 20, 28)  # a 5 x 7 grid: windows of 3 x 3, cut at the edges
    changed = images.clone()
    changed[..., :4, :4] += 1.0
    differs = (vit(images).maps[0] != vit(changed).maps[0]).any(1)[0]
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[:3, :3] = True
    assert torch.equal(differs, expected)


@pytest.mark.parametrize("grid", [(6, 9), (5, 7), (1, 2)])
def test_windows_hold_every_token_once_and_zeros(grid: tuple[int, int]) -> None:
    x = torch.randn(2, grid[0] * grid[1], 5)
    windows = to_windows(x, grid, 3)
    assert windows.shape == (2 * -(-grid[0] // 3) * -(-grid[1] // 3), 9, 5)
    assert torch.equal(from_windows(windows, grid, 3), x)
    assert (windows != 0).any(-1).sum() == 2 * grid[0] * grid[1]


@pytest.mark.parametrize("leading", [0, 1])
@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 6)])
def test_the_bias_is_the_table_read_by_the_index(grid: tuple[int, int], leading: int) -> None:
    table = torch.randn(relative_rows(grid, leading=leading), 2, requires_grad=True)
    bias = relative_bias(table, grid, leading=leading)
    expected = table[relative_index(grid, leading=leading)].permute(2, 0, 1)
    assert torch.equal(bias, expected)
    weights = torch.randn_like(bias)
    gradients = [torch.autograd.grad((b * weights).sum(), table)[0] for b in (bias, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("options", SWITCHED_ON)
def test_any_size_trains_every_parameter(options: dict[str, Any]) -> None:
    vit = dense(**options)
    randomize(vit)
    for image in ((16, 24), (20, 12), (36, 28)):
        vit.zero_grad()
        vit(torch.randn(1, 3, *image)).maps[0].square().mean().backward()
        assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_shared_tables_are_one_for_windows_and_one_for_global_blocks() -> None:
    vit = dense(windows=3, global_blocks=(1, 3), relative_positions="shared")
    assert [len(table.table) for table in vit.rel_pos_bias] == [7 * 11, 5 * 5]
    assert vit.table_of == [1, 0, 1, 0]
    assert len(dense(windows=3, relative_positions="shared").rel_pos_bias) == 1
    assert [
        len(t.table) for t in dense(windows=3, global_blocks=(1,), relative_positions="per_block").rel_pos_bias
    ] == [25, 77, 25, 25]


def test_layer_decay_and_weight_decay_know_the_tables() -> None:
    vit = dense(windows=3, global_blocks=(1, 3), relative_positions="decomposed")
    assert {vit.layer_of(name) for name, _ in vit.named_parameters()} == {0, 1, 2, 3, 4}
    assert vit.layer_of("blocks.2.attn.rel_pos_h") == 3
    assert vit.no_weight_decay() == {"pos_embed"}
    assert vit.blocks[0].attn.rel_pos_w.shape == (5, 8)
    assert vit.blocks[1].attn.rel_pos_h.shape == (7, 8)
    assert vit.blocks[1].attn.rel_pos_w.shape == (11, 8)
    shared = dense(windows=3, global_blocks=(1, 3), relative_positions="shared")
    assert shared.layer_of("rel_pos_bias.1.table") == 5
    assert shared.no_weight_decay() == {"pos_embed", "rel_pos_bias.0.table", "rel_pos_bias.1.table"}


@pytest.mark.parametrize("options", [{"windows": 3}, {"relative_positions": "decomposed"}])
def test_masked_pretraining_with_windows_says_what_to_do(options: dict[str, Any]) -> None:
    vit = dense(**options)
    ids = torch.arange(5)[None]
    with pytest.raises(ValueError, match="add them at transfer"):
        vit.encode(torch.randn(1, 5, 32), (4, 6), ids)


@pytest.mark.parametrize(("options", "match"), [
    ({"class_token": True, "windows": 3}, "class_token=False"),
    ({"class_token": True, "relative_positions": "decomposed"}, "class_token=False"),
    ({"global_blocks": (1,)}, "set `windows`"), ({"windows": 3, "global_blocks": (4,)}, "give blocks 0..3"),
    ({"windows": 0}, "windows"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dense(**options)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        vit = dense(windows=3, global_blocks=(1, 3), relative_positions="decomposed")
        vit.set_grad_checkpointing(recompute)
        vit(torch.ones(1, 3, 20, 12)).maps[0].square().mean().backward()
        gradients.append([p.grad for p in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bf16_is_close_to_float32() -> None:
    vit = dense(windows=3, global_blocks=(1, 3), relative_positions="decomposed")
    images = torch.randn(1, 3, 20, 12)
    with torch.autocast("cpu", torch.bfloat16):
        half = vit(images).maps[0]
    torch.testing.assert_close(half.float(), vit(images).maps[0], rtol=0.1, atol=0.1)


def pretrained(tmp_path: Path, **options: object) -> tuple[ViT, Path]:
    vit = ViT(ViTConfig.model_validate(DENSE | {"class_token": True, "image_size": 24} | options))
    randomize(vit)
    checkpoints.export_backbone(tmp_path / "b.safetensors", vit, about={})
    return vit, tmp_path / "b.safetensors"


@torch.no_grad()
def test_a_pretrained_encoder_gets_windows_on_loading(tmp_path: Path) -> None:
    vit, path = pretrained(tmp_path)
    ours = checkpoints.load_backbone(path, changes={
        "class_token": False, "windows": 4, "global_blocks": (1, 3), "relative_positions": "decomposed",
        "image_size": 32,
    })  # fmt: skip
    assert torch.equal(ours.blocks[3].attn.qkv.weight, vit.blocks[3].attn.qkv.weight)
    assert not ours.blocks[0].attn.rel_pos_h.any()
    assert ours.blocks[1].attn.rel_pos_h.shape == (15, 8)
    checkpoints.export_backbone(tmp_path / "d.safetensors", ours, about={})
    again = checkpoints.load_backbone(tmp_path / "d.safetensors", changes={"image_size": 48})
    assert again.blocks[1].attn.rel_pos_h.shape == (23, 8)
    with pytest.raises(ValueError, match="cannot become"):
        checkpoints.load_backbone(tmp_path / "d.safetensors", changes={"relative_positions": "shared"})


@torch.no_grad()
def test_beit_s_shared_table_goes_to_windows_and_global_blocks(tmp_path: Path) -> None:
    vit, path = pretrained(tmp_path, relative_positions="shared", positions="none")
    changes = {"class_token": False, "windows": 6, "global_blocks": (1, 3)}
    ours = checkpoints.load_backbone(path, changes=changes)
    assert torch.equal(ours.rel_pos_bias[1].table, vit.rel_pos_bias[0].table[:-3])  # a window as large as the image was
    assert torch.equal(ours.rel_pos_bias[0].table, vit.rel_pos_bias[0].table[:-3])
    blocks = checkpoints.load_backbone(path, changes=changes | {"relative_positions": "per_block", "windows": 3})
    assert [len(table.table) for table in blocks.rel_pos_bias] == [25, 121, 25, 121]
    assert all(table.table.any() for table in blocks.rel_pos_bias)


@torch.no_grad()
def test_a_patch_of_14_px_becomes_one_of_16(tmp_path: Path) -> None:
    vit, path = pretrained(tmp_path, patch=14, image_size=56)
    ours = checkpoints.load_backbone(path, changes={"class_token": False, "patch": 16, "image_size": 64})
    assert ours.patch_embed.proj.weight.shape == (32, 3, 16, 16)
    assert torch.equal(ours.pos_embed, vit.pos_embed[:, 1:])  # the same 4 x 4 grid
    constant = resample_filters(torch.full((1, 1, 14, 14), 2.0), 16)
    torch.testing.assert_close(constant, torch.full((1, 1, 16, 16), 2.0))
    ramp = resample_filters(torch.arange(14.0).expand(1, 1, 14, 14), 16)[0, 0, 8]
    expected = (torch.arange(16) + 0.5) * 14 / 16 - 0.5
    torch.testing.assert_close(ramp[3:13], expected[3:13], rtol=0, atol=0.1)


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (8, 8)])
def test_folded_positions_are_the_bias_in_value_and_gradient(grid: tuple[int, int]) -> None:
    (h, w), generator = grid, torch.Generator().manual_seed(0)
    shapes = [*3 * [(2, 3, h * w, 16)], (2 * h - 1, 16), (2 * w - 1, 16)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    q, k, v, rows, columns = inputs
    with_bias = attend(q, k, v, decomposed_bias(q, rows, columns, grid))
    folded = attend_folded(q, k, v, rows, columns, grid)
    torch.testing.assert_close(folded, with_bias, rtol=0, atol=1e-9)
    weight = torch.randn(v.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(out, inputs, weight) for out in (folded, with_bias)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"windows": 3, "global_blocks": (1, 3)}])
def test_an_encoder_with_folded_positions_is_the_same(options: dict[str, Any]) -> None:
    """Also with padded windows, and for an image of another size than the tables'."""
    ours = dense(relative_positions="decomposed", **options).double()
    randomize(ours)
    images = torch.randn(2, 3, 20, 28, dtype=torch.float64)
    expected = ours(images).maps[0]
    expected.square().mean().backward()
    gradients = [parameter.grad for parameter in ours.parameters()]
    ours.zero_grad()
    fold_positions(ours)
    found = ours(images).maps[0]
    found.square().mean().backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for parameter, gradient in zip(ours.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9)


def test_folded_positions_keep_nothing_of_the_size_of_the_bias() -> None:
    def largest(**options: Any) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            ours(torch.randn(1, 3, 80, 80))
        return max(sizes)

    ours, patches = dense(relative_positions="decomposed", image_size=80), 20 * 20
    assert largest() >= patches**2 * 4
    fold_positions(ours)
    assert largest() < patches**2


def test_positions_that_are_not_decomposed_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="no block has decomposed relative positions: remove it"):
        fold_positions(dense(relative_positions="shared"))
