"""Windows and relative positions of the encoder: no effect if off or zero, any image size, loading."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mae_transfer import checkpoints
from mae_transfer.core.positions import relative_bias, relative_index, relative_rows, resample_filters
from mae_transfer.models.attention import (
    Attention,
    DecomposedBias,
    PositionBias,
    RelativePositionBias,
    TableBias,
    attend,
    attend_channels,
    attend_flex,
    decomposed_bias,
    from_windows,
    select_samples,
    set_position_bias,
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


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
flex_warns = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile",
    "ignore:The .grad attribute of a Tensor",  # torch's own compiler reads it
)


def assert_is_the_bias(
    attend_with: Callable[..., Tensor],
    make: Callable[..., DecomposedBias | TableBias],
    queries: int,
    keys: int,
    *tables: tuple[int, int],
) -> None:
    """attend_with(q, k, v, make(q, *tables)) is attention with the bias as a tensor, in value and gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, queries, 16), *2 * [(2, 3, keys, 16)], *tables]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    q, k, v, *given = inputs
    expected = attend(q, k, v, make(q, *given).tensor()[:, :, -queries:])
    found = attend_with(q, k, v, make(q, *given))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    weight = torch.randn(q.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(out, inputs, weight) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@flex_warns
@pytest.mark.parametrize(("attend_with", "grid"), [
    (attend_channels, (5, 7)), (attend_channels, (1, 6)), (attend_channels, (8, 8)), (attend_flex, (5, 7)),
])  # fmt: skip
@pytest.mark.usefixtures("flex_with_gradients")
def test_decomposed_positions_are_their_bias(attend_with: Callable[..., Tensor], grid: tuple[int, int]) -> None:
    (h, w), n = grid, grid[0] * grid[1]
    assert_is_the_bias(
        attend_with, lambda q, *axes: decomposed_bias(q, *axes, grid), n, n, (2 * h - 1, 16), (2 * w - 1, 16)
    )


@flex_warns
@pytest.mark.parametrize(("leading", "given", "last"), [(0, None, None), (1, None, 4), (0, 11, 4), (1, 11, None)])
@pytest.mark.usefixtures("flex_with_gradients")
def test_flex_attention_reads_the_table_of_offsets(leading: int, given: int | None, last: int | None) -> None:
    """For all patches or those given, for all queries or the last ones, with and without a class token."""
    ids = torch.stack([torch.randperm(35)[:given] for _ in range(2)]) if given else None
    tokens = leading + (given or 35)
    table = relative_rows((5, 7), leading=leading), 3
    assert_is_the_bias(attend_flex, lambda _, t: TableBias(t, (5, 7), ids, leading), last or tokens, tokens, table)


def test_samples_keep_their_own_bias() -> None:
    ids, kept = torch.stack([torch.randperm(35)[:6] for _ in range(3)]), torch.tensor([2, 0])
    bias = TableBias(torch.randn(relative_rows((5, 7)), 2), (5, 7), ids, 1)
    selected = select_samples(bias, kept)
    assert isinstance(selected, TableBias)
    assert torch.equal(selected.tensor(), select_samples(bias.tensor(), kept))
    alike = bias._replace(ids=None)
    assert select_samples(alike, kept) is alike


@pytest.mark.parametrize("options", [{}, {"windows": 3, "global_blocks": (1, 3)}])
def test_an_encoder_with_positions_as_channels_is_the_same(options: dict[str, Any]) -> None:
    """Also with padded windows, and for an image of another size than the tables'."""
    ours = dense(relative_positions="decomposed", **options).double()
    randomize(ours)
    images = torch.randn(2, 3, 20, 28, dtype=torch.float64)
    expected = ours(images).maps[0]
    expected.square().mean().backward()
    gradients = [parameter.grad for parameter in ours.parameters()]
    ours.zero_grad()
    set_position_bias(ours, "channels", device=CPU, compiled=False)
    found = ours(images).maps[0]
    found.square().mean().backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for parameter, gradient in zip(ours.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9)


def test_positions_as_channels_keep_nothing_of_the_size_of_the_bias() -> None:
    def largest(**options: Any) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            ours(torch.randn(1, 3, 80, 80))
        return max(sizes)

    ours, patches = dense(relative_positions="decomposed", image_size=80), 20 * 20
    assert largest() >= patches**2 * 4
    set_position_bias(ours, "channels", device=CPU, compiled=False)
    assert largest() < patches**2


def kinds(vit: ViT) -> set[PositionBias]:
    return {part.position_bias for part in vit.modules() if isinstance(part, Attention | RelativePositionBias)}


@pytest.mark.parametrize(("device", "compiled", "channels", "reason"), [
    (CPU, True, 16, "the device is not cuda"),
    (CUDA, False, 16, "blocks are not compiled (run.compile)"),
    (CUDA, True, 8, "heads have 8 channels, fewer than 16"),
    (CUDA, True, 16, None),
])  # fmt: skip
def test_flex_attention_gives_way_to_the_bias_with_one_line_that_says_why(
    device: torch.device, compiled: bool, channels: int, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    vit = dense(relative_positions="shared", dim=4 * channels)
    with caplog.at_level(logging.WARNING):
        set_position_bias(vit, "flex", device=device, compiled=compiled)
    assert kinds(vit) == {"tensor" if reason else "flex"}
    lines = [f"run.position_bias='flex' has no kernel here, 'tensor' is used: {reason}"] if reason else []
    assert caplog.messages == lines


@torch.no_grad()
def test_blocks_that_run_eagerly_take_the_bias_although_flex_attention_is_set() -> None:
    vit = dense(relative_positions="per_block", dim=64)
    randomize(vit)
    images = torch.randn(2, 3, 20, 28)
    expected = vit(images).maps[0]
    set_position_bias(vit, "flex", device=CUDA, compiled=True)
    assert torch.equal(vit(images).maps[0], expected)


@pytest.mark.parametrize(("how", "options", "kind"), [
    ("channels", {"relative_positions": "shared"}, "decomposed relative"), ("channels", {}, "decomposed relative"),
    ("flex", {}, "relative"),
])  # fmt: skip
def test_a_model_without_such_positions_is_named(how: PositionBias, options: dict[str, Any], kind: str) -> None:
    with pytest.raises(ValueError, match=f"run.position_bias = '{how}', but no block has {kind} positions: remove it"):
        set_position_bias(dense(**options), how, device=CUDA, compiled=True)
