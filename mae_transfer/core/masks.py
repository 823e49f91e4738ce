"""Mask samplers. A sampler returns a permutation of the patches, of which the first V are visible.

V depends only on the grid, so that every mask of a batch has the same shape. A ViewMask hides a number of patches that
varies, and returns weights instead. In boolean masks, True = hidden.

Legend: N patches of an (h, w) grid in raster order, V visible patches, M the most patches that a ViewMask hides.
"""

from __future__ import annotations

from abc import abstractmethod
from math import log
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mae_transfer.bounds import BelowOne, Between, Count, Few, Portion
from mae_transfer.config import Part, Schema

BEIT_MIN_BLOCK = 16  # patches; BEiT run_beit_pretraining.py, 14 x 14 patches
BEIT_MIN_ASPECT = 0.3
BEIT_TRIES = 10


class _Sampler(Part):
    """Base class of samplers that draw the mask on a grid of cells of unit x unit patches."""

    unit: Few = 1
    """Patches per side of a cell, which is hidden or visible as a whole. SimMIM uses 2: 32-px cells of 16-px patches.
    """

    def cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) grid of cells. ValueError if the unit does not divide the patch grid."""
        if grid[0] % self.unit or grid[1] % self.unit:
            raise ValueError(
                f"mask.unit = {self.unit} does not divide the {grid[0]}x{grid[1]} grid of patches: use a common divisor"
            )
        return grid[0] // self.unit, grid[1] // self.unit

    @abstractmethod
    def visible_cells(self, cells: tuple[int, int]) -> int:
        """Return the number of visible cells."""

    @abstractmethod
    def hide(self, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return which cells are hidden, (h, w) bool, all but `visible_cells` of them."""

    def visible(self, grid: tuple[int, int]) -> int:
        """Return V, the number of visible patches of every mask on this grid. ValueError unless 0 < V < N."""
        cells = self.cells(grid)
        kept = self.visible_cells(cells)
        if not 0 < kept < cells[0] * cells[1]:
            raise ValueError(
                f"mask.ratio: {type(self).__name__} keeps {kept} of {cells[0] * cells[1]} cells; set a ratio that "
                "hides some cells and keeps some"
            )
        return kept * self.unit**2

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return a permutation of the N patch indices, (N,) int64, the V visible ones first."""
        hidden = self.hide(self.cells(grid), rng).repeat(self.unit, axis=0).repeat(self.unit, axis=1)
        return np.argsort(hidden.ravel(), kind="stable")


class _RatioSampler(_Sampler):
    """A sampler that hides a share of the cells. It keeps int(cells * (1 - ratio)) of them, as MAE does."""

    ratio: Between = 0.75
    """Share of hidden cells."""

    def visible_cells(self, cells: tuple[int, int]) -> int:
        return int(cells[0] * cells[1] * (1 - self.ratio))


class Random(_RatioSampler):
    """Uniform sampling without replacement (MAE, section 3)."""

    name: Literal["random"] = "random"

    def hide(self, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        hidden = np.ones(cells[0] * cells[1], dtype=bool)
        hidden[rng.permutation(hidden.size)[: self.visible_cells(cells)]] = False
        return hidden.reshape(cells)


class Block(_RatioSampler):
    """Block-wise masking (BEiT, algorithm 1). It hides random rectangles until the share is reached.

    Rectangles have at least `min_block` cells and an aspect ratio in [0.3, 1/0.3]. BEiT's loop stops when ten tries in
    a row add nothing. For 75 of 14 x 14 patches this happens in a third of the draws, which then lack 1.6 patches on
    average. The missing patches are hidden at random; they are 0.7 % of all hidden patches.
    """

    name: Literal["block"] = "block"
    ratio: Between = 0.5
    """Share of hidden cells."""
    min_block: Count = BEIT_MIN_BLOCK
    """Minimum number of cells of a rectangle."""

    def hide(self, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        count = cells[0] * cells[1] - self.visible_cells(cells)
        hidden = self.blocks(cells, count, rng)
        rest = rng.permutation(np.flatnonzero(~hidden))[: count - hidden.sum()]
        hidden.ravel()[rest] = True
        return hidden

    def blocks(self, cells: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
        """Return BEiT's mask before missing cells are added, (h, w) bool, with at most `count` hidden cells."""
        hidden = np.zeros(cells, dtype=bool)
        while (left := count - int(hidden.sum())) > 0:
            for _ in range(BEIT_TRIES):
                if self._add_block(hidden, left, rng):
                    break
            else:
                return hidden
        return hidden

    def _add_block(self, hidden: np.ndarray, most: int, rng: np.random.Generator) -> bool:
        """Hide one random rectangle in place. Return False if it does not fit, or adds no or more than `most` cells."""
        # rng.uniform would raise an error near the end, where `most` is below `min_block`
        area = self.min_block + (most - self.min_block) * rng.random()
        aspect = np.exp(rng.uniform(log(BEIT_MIN_ASPECT), -log(BEIT_MIN_ASPECT)))
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if h >= hidden.shape[0] or w >= hidden.shape[1]:
            return False
        top, left = rng.integers(hidden.shape[0] - h + 1), rng.integers(hidden.shape[1] - w + 1)
        block = hidden[top : top + h, left : left + w]
        if not 0 < block.size - block.sum() <= most:
            return False
        block[:] = True
        return True


class Grid(_Sampler):
    """Keeps the top left cell of each 2 x 2 block (MAE, table 1f). The mask is always the same."""

    name: Literal["grid"] = "grid"

    def visible_cells(self, cells: tuple[int, int]) -> int:
        return -(-cells[0] // 2) * -(-cells[1] // 2)

    def hide(self, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        hidden = np.ones(cells, dtype=bool)
        hidden[::2, ::2] = False
        return hidden


AnyMask = Annotated[Random | Block | Grid, Field(discriminator="name")]


class ViewMask(Schema):
    """What a student does not see of a wide view (iBOT, section 3.2, and loader.py of its code).

    Each view has a mask with probability `share`. The number of hidden patches is drawn per view, so that views differ.
    """

    name: Literal["block", "random"] = "block"
    """"block": rectangles as in BEiT, which may hide fewer patches than drawn. "random": uniform sampling."""
    ratio: Between = 0.3
    """Mean share of hidden patches in a view with a mask."""
    spread: BelowOne = 0.2
    """The share is uniform between `ratio` - `spread` and `ratio` + `spread`."""
    share: Portion = 0.5
    """Probability that a view has a mask."""

    @model_validator(mode="after")
    def _a_share(self) -> Self:
        if not self.spread <= self.ratio <= 1 - self.spread:
            raise ValueError(
                f"ratio = {self.ratio}, spread = {self.spread}: the share of hidden patches would leave [0, 1]; lower "
                "the spread"
            )
        return self

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError if no mask can hide a patch of this (h, w) grid."""
        if int(grid[0] * grid[1] * (self.ratio + self.spread)) < 1:
            raise ValueError(f"mask.ratio = {self.ratio} hides no patch of a {grid[0]}x{grid[1]} grid: raise it")

    def __call__(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return which patches are hidden, (h, w) bool."""
        patches = grid[0] * grid[1]
        if rng.random() >= self.share:
            return np.zeros(grid, dtype=bool)
        count = int(patches * rng.uniform(self.ratio - self.spread, self.ratio + self.spread))
        if self.name == "block":
            return Block(min_block=max(1, (min(grid) // 3) ** 2)).blocks(grid, count, rng)
        return (rng.permutation(patches) < count).reshape(grid)
