"""core/: each function against a loop or a formula."""

import numpy as np
import pytest
import torch

from mae_transfer.config import members
from mae_transfer.core.masks import AnyMask, Block, Grid, Random
from mae_transfer.core.normalize import IMAGENET, denormalize, normalize
from mae_transfer.core.patches import grid_of, patchify, put, take, unpatchify
from mae_transfer.core.positions import relative_index, relative_rows, resample, sincos_2d
from mae_transfer.interfaces import MaskSampler

RNG = np.random.default_rng


@pytest.mark.parametrize(("size", "patch", "channels"), [((8, 8), 4, 3), ((6, 12), 3, 1), ((28, 14), 14, 4)])
def test_patchify_equals_a_loop_and_unpatchify_inverts_it(size: tuple[int, int], patch: int, channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    patches = patchify(images, patch)
    h, w = grid_of(size, patch)
    for n in range(h * w):
        row, column = divmod(n, w)
        piece = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert torch.equal(patches[:, n], piece.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(patches, (h, w), channels=channels), images)


def test_a_patch_that_does_not_divide_the_image_is_named() -> None:
    with pytest.raises(ValueError, match="30x32 px cannot be cut into patches.*multiples of patch = 16"):
        grid_of((30, 32), 16)
    with pytest.raises(ValueError, match="do not form a 2x2 grid"):
        unpatchify(torch.zeros(1, 5, 12), (2, 2))


def test_put_is_the_inverse_of_take() -> None:
    tokens = torch.randn(2, 6, 3)
    ids = torch.stack([torch.randperm(6)[:4], torch.randperm(6)[:4]])
    picked = take(tokens, ids)
    assert torch.equal(picked[1, 2], tokens[1, ids[1, 2]])
    assert torch.equal(put(picked, ids, into=tokens), tokens)
    assert (put(picked + 1, ids, into=tokens) != tokens).any(dim=2).sum() == 8


def test_normalize_is_the_formula_on_any_channel_dimension_and_denormalize_inverts_it() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (images / 255 - torch.tensor(IMAGENET.mean)[:, None, None]) / torch.tensor(IMAGENET.std)[:, None, None]
    torch.testing.assert_close(normalize(images), expected)
    torch.testing.assert_close(normalize(images.permute(0, 2, 3, 1), channels=3), expected.permute(0, 2, 3, 1))
    torch.testing.assert_close(denormalize(normalize(images)), images / 255)
    with pytest.raises(ValueError, match="4 channels"):
        normalize(torch.zeros(1, 4, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("sampler", members(AnyMask).values())
@pytest.mark.parametrize("grid", [(14, 14), (8, 12), (16, 16)])
@pytest.mark.parametrize("unit", [1, 2])
def test_every_sampler_returns_a_permutation_whose_visible_part_has_the_promised_size(
    sampler: type[MaskSampler], grid: tuple[int, int], unit: int
) -> None:
    sampler = sampler(unit=unit)
    for seed in range(20):
        order = sampler(grid, RNG(seed))
        assert order.dtype == np.int64
        assert sorted(order) == list(range(grid[0] * grid[1]))
        hidden = np.ones(grid, dtype=bool)
        hidden.ravel()[order[: sampler.visible(grid)]] = False
        cells = hidden.reshape(grid[0] // unit, unit, grid[1] // unit, unit)
        assert (cells.all(axis=(1, 3)) | ~cells.any(axis=(1, 3))).all(), (
            "a cell of unit x unit patches is hidden or visible as a whole"
        )


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 49), (0.9, 19), (0.1, 176), (0.6, 78)])
def test_the_number_of_visible_patches_equals_mae(ratio: float, visible: int) -> None:
    assert Random(ratio=ratio).visible((14, 14)) == visible == int(196 * (1 - ratio))


def test_random_masks_hide_every_patch_equally_often() -> None:
    counts = sum(np.bincount(Random()((4, 4), RNG(seed))[:4], minlength=16) for seed in range(4000))
    assert np.abs(counts / 4000 - 0.25).max() < 0.035  # five standard deviations


def test_a_mask_depends_only_on_its_generator() -> None:
    assert np.array_equal(Block()((14, 14), RNG(3)), Block()((14, 14), RNG(3)))
    assert not np.array_equal(Block()((14, 14), RNG(3)), Block()((14, 14), RNG(4)))


def test_grid_keeps_exactly_one_of_each_four() -> None:
    order = Grid()((14, 14), RNG(0))
    visible = np.zeros((14, 14), dtype=int)
    visible.ravel()[order[: Grid().visible((14, 14))]] = 1
    assert (visible.reshape(7, 2, 7, 2).sum(axis=(1, 3)) == 1).all()


def test_block_masks_consist_of_blocks_and_lack_as_many_cells_as_in_beit() -> None:
    sampler = Block(ratio=75 / 196)
    counts = np.array([sampler.blocks((14, 14), 75, RNG(seed)).sum() for seed in range(2000)])
    assert counts.max() <= 75
    assert 0.25 < (counts < 75).mean() < 0.45  # "in a third of draws"
    assert counts.min() > 55
    hidden = sampler.blocks((14, 14), 75, RNG(0))
    neighbours = (hidden[1:] & hidden[:-1]).sum() + (hidden[:, 1:] & hidden[:, :-1]).sum()
    assert neighbours > 1.5 * hidden.sum(), "most hidden patches have hidden neighbours below and to the right"


@pytest.mark.parametrize(("make", "match"), [
    (lambda: Random(ratio=1.0), r"(?s)ratio.*less than 1"),
    (lambda: Random(unit=0), "(?s)unit.*greater than or equal to 1"),
    (lambda: Random(unit=4).visible((14, 14)), "does not divide the 14x14 grid"),
    (lambda: Random(ratio=0.99).visible((2, 2)), "keeps 0 of 4"),
])  # fmt: skip
def test_impossible_masks_are_refused(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_sincos_puts_the_column_first() -> None:
    table = sincos_2d(8, (2, 3))[0]
    omega = np.array([1.0, 10000.0**-0.5])
    for n in range(6):
        row, column = divmod(n, 3)
        expected = np.concatenate(
            [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
        )
        np.testing.assert_allclose(table[1 + n], expected, atol=1e-6)
    assert (table[0] == 0).all()
    with pytest.raises(ValueError, match="width 6"):
        sincos_2d(6, (2, 2))


def test_resampling_keeps_the_class_row_and_equal_grids_untouched() -> None:
    table = sincos_2d(16, (4, 4))
    assert resample(table, (4, 4), (4, 4)) is table
    bigger = resample(table, (4, 4), (6, 8))
    assert bigger.shape == (1, 49, 16)
    assert torch.equal(bigger[:, 0], table[:, 0])
    constant = torch.ones(1, 17, 4)
    torch.testing.assert_close(resample(constant, (4, 4), (7, 5)), torch.ones(1, 36, 4))


@pytest.mark.parametrize("leading", [0, 1])
def test_relative_index_has_one_row_per_offset(leading: int) -> None:
    h, w = 3, 4
    index = relative_index((h, w), leading=leading)
    seen: dict[tuple[int, int], int] = {}
    for a in range(h * w):
        for b in range(h * w):
            offset = (a // w - b // w, a % w - b % w)
            assert seen.setdefault(offset, int(index[a + leading, b + leading])) == int(index[a + leading, b + leading])
    assert len(set(seen.values())) == (2 * h - 1) * (2 * w - 1)
    assert set(index.unique().tolist()) == set(range(relative_rows((h, w), leading=leading)))


def test_relative_index_equals_beit() -> None:
    from timm.layers import gen_relative_position_index

    assert torch.equal(relative_index((5, 5)), gen_relative_position_index((5, 5), class_token=True))
    assert torch.equal(relative_index((3, 5), leading=0), gen_relative_position_index((3, 5)))
