"""Images as sequences of patches.

Legend: B batch, C channels, H x W pixels, p patch side, N = (H/p) * (W/p) patches in raster order.
"""

from __future__ import annotations

from torch import Tensor

GREY = 0.5  # value of patches without a prediction in pictures


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size in a config: the side of a square, or both."""
    return (size, size) if isinstance(size, int) else size


def size_of(height: int, width: int) -> int | tuple[int, int]:
    """Return a height and width as a size in a config: the side if they are equal, else both."""
    return height if height == width else (height, width)


def grid_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the (h, w) grid of patches of an image of (H, W) pixels. ValueError if the patch does not divide it."""
    if size[0] % patch or size[1] % patch or min(size) < patch:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} px cannot be cut into patches: set its sides (data.size, image_size) to "
            f"multiples of patch = {patch}"
        )
    return size[0] // patch, size[1] // patch


def patchify(images: Tensor, patch: int) -> Tensor:
    """Return (B, N, p * p * C): each patch's values row by row, channels last (the order of MAE's predictions)."""
    b, c, height, width = images.shape
    h, w = grid_of((height, width), patch)
    return images.view(b, c, h, patch, w, patch).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch * patch * c)


def unpatchify(patches: Tensor, grid: tuple[int, int], *, channels: int = 3) -> Tensor:
    """Invert `patchify`: return the images (B, C, H, W) of `patches` (B, N, p * p * C) on this (h, w) grid."""
    b, n, values = patches.shape
    h, w = grid
    patch = round((values / channels) ** 0.5)
    if n != h * w or patch * patch * channels != values:
        raise ValueError(
            f"{n} patches of {values} values do not form a {h}x{w} grid of square patches of {channels} channels"
        )
    return (
        patches.view(b, h, w, patch, patch, channels)
        .permute(0, 5, 1, 3, 2, 4)
        .reshape(b, channels, h * patch, w * patch)
    )


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Return tokens[b, ids[b, m]], (B, M, D), for tokens (B, N, D) and ids (B, M)."""
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


def put(values: Tensor, ids: Tensor, into: Tensor) -> Tensor:
    """Return a copy of `into` (B, N, D) with its tokens `ids` (B, M) replaced by `values` (B, M, D)."""
    return into.scatter(1, ids[:, :, None].expand(-1, -1, into.shape[2]), values.to(into.dtype))


def paint(patches: Tensor, ids: Tensor, grid: tuple[int, int], *, channels: int = 3) -> Tensor:
    """Return images (B, C, H, W) with `patches` (B, M, p * p * C) at `ids` (B, M) of the grid and grey elsewhere."""
    blank = patches.new_full((len(patches), grid[0] * grid[1], patches.shape[2]), GREY)
    return unpatchify(put(patches, ids, into=blank), grid, channels=channels)
