"""Generated scenes: shaded, textured solids of ten kinds on a textured ground, with occlusion and soft shadows.

Lighting, textures and the symmetry of the solids make hidden parts predictable from visible ones. Each scene has class
and instance masks, so it also serves detection and segmentation.

Legend: S pixels per side, n objects of a scene in painting order, h x w pixels of a window, x to the right and y down
in [0, 1] of the image, u and v the same in an object's own frame, where it fits the unit circle.
"""

from __future__ import annotations

import colorsys
import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from mae_transfer.bounds import Count, Few, Pixels, Seed
from mae_transfer.data.sources import Sample, SetConfig
from mae_transfer.disk import atomic_write, cache_folder
from mae_transfer.seeding import fold

Array = np.ndarray
Solid = Callable[[Array, Array], Array]
"""A signed distance field over u and v: negative inside, zero on the edge. The distance is exact or nearly exact
inside. Beyond a sharp tip it is smaller than the Euclidean distance."""
BLOCK = 256  # scenes per file of the cache
LARGEST = 2**28  # bytes; larger sets are not cached


def _circle(u: Array, v: Array) -> Array:
    return np.asarray(np.hypot(u, v) - 0.9)


def _box(u: Array, v: Array, half_u: float, half_v: float) -> Array:
    du, dv = np.abs(u) - half_u, np.abs(v) - half_v
    return np.asarray(np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0))


def _square(u: Array, v: Array) -> Array:
    return np.asarray(_box(u, v, 0.66, 0.66) - 0.05)


def _cross(u: Array, v: Array) -> Array:
    return np.asarray(np.minimum(_box(u, v, 0.9, 0.28), _box(u, v, 0.28, 0.9)) - 0.03)


def _capsule(u: Array, v: Array) -> Array:
    return np.asarray(np.hypot(np.maximum(np.abs(u) - 0.6, 0), v) - 0.36)


def _ring(u: Array, v: Array) -> Array:
    return np.asarray(np.abs(np.hypot(u, v) - 0.66) - 0.26)


def _crescent(u: Array, v: Array) -> Array:
    return np.asarray(np.maximum(np.hypot(u, v) - 0.92, 0.68 - np.hypot(u - 0.5, v)))


def _flower(u: Array, v: Array) -> Array:
    return np.asarray(np.hypot(u, v) - (0.7 + 0.22 * np.cos(6 * np.arctan2(v, u))))


def _polar(u: Array, v: Array, points: int) -> tuple[Array, Array]:
    """Fold the plane into one of 2 * points equal wedges, with a corner pointing up. Return the folded coordinates."""
    wedge = 2 * np.pi / points
    angle = np.abs((np.arctan2(v, u) + np.pi / 2 + wedge / 2) % wedge - wedge / 2)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


def _edge_distance(u: Array, v: Array, points: int, inner: float) -> Array:
    """Return the distance to a star with tips at radius 0.95 and inner corners at radius `inner`.

    With `inner` = 0.95 * cos(pi / points) the star is a regular polygon.
    """
    p, q = _polar(u, v, points)
    tip, notch = np.array([0.95, 0.0]), inner * np.array([np.cos(np.pi / points), np.sin(np.pi / points)])
    normal = np.array([notch[1], tip[0] - notch[0]]) / np.hypot(notch[1], tip[0] - notch[0])
    return np.asarray((p - np.float32(tip[0])) * np.float32(normal[0]) + q * np.float32(normal[1]))


def _triangle(u: Array, v: Array) -> Array:
    return _edge_distance(u, v, 3, 0.95 * np.cos(np.pi / 3))


def _hexagon(u: Array, v: Array) -> Array:
    return _edge_distance(u, v, 6, 0.95 * np.cos(np.pi / 6))


def _star(u: Array, v: Array) -> Array:
    return _edge_distance(u, v, 5, 0.45)


SOLIDS: dict[str, Solid] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "hexagon": _hexagon,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "capsule": _capsule,
    "crescent": _crescent,
    "flower": _flower,
}


class GeneratedScene(NamedTuple):
    """One generated image with its annotations."""

    image: Array  # (S, S, 3) uint8 RGB
    instances: Array  # (S, S) uint8: 0 for the ground, k for the k-th object
    kinds: Array  # (n,) int64: object k has class kinds[k - 1]; objects may be completely hidden

    @property
    def classes(self) -> Array:
        """The class mask, (S, S) uint8: 0 for the ground, 1 + class for objects."""
        return np.asarray(np.concatenate([[0], self.kinds + 1]).astype(np.uint8)[self.instances])

    @property
    def label(self) -> int:
        """The class of the object with the most visible pixels."""
        return int(self.kinds[np.bincount(self.instances.ravel(), minlength=len(self.kinds) + 1)[1:].argmax()])

    @property
    def boxes(self) -> Array:
        """Tight boxes x0, y0, x1, y1 in pixels, ends exclusive, (n, 4) int64; zeros for a completely hidden object."""
        boxes = np.zeros((len(self.kinds), 4), dtype=np.int64)
        for k in range(len(self.kinds)):
            ys, xs = np.nonzero(self.instances == k + 1)
            if len(xs):
                boxes[k] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        return boxes


MOST_OBJECTS = 16  # in a scene
Kinds = Annotated[int, Field(ge=2, le=len(SOLIDS))]
"""Number of kinds of solids."""


class ScenesConfig(SetConfig):
    """Generated scenes, each a pure function of (seed, index, size). They are drawn once and cached."""

    name: Literal["shapes"] = "shapes"
    size: Pixels = 64
    """Pixels per side."""
    length: Count = 10_000
    """Number of scenes."""
    seed: Seed = 0
    """Seed of the whole set. Use another seed for a validation split."""
    objects: tuple[Few, Few] = (2, 4)
    """Minimum and maximum number of objects in a scene."""
    kinds: Kinds = 10
    """Number of classes: the first of SOLIDS."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if self.size < 8 or not self.objects[0] <= self.objects[1] <= MOST_OBJECTS:
            raise ValueError(
                f"size = {self.size}, objects = {self.objects}: give size >= 8 and 1 <= minimum <= maximum <= "
                f"{MOST_OBJECTS} objects"
            )
        return self


class ShapesConfig(ScenesConfig):
    """Generated scenes with the class of their largest object."""

    def open(self) -> Shapes:
        return Shapes(self)


class Shapes:
    """Generated scenes with the class of their largest object."""

    def __init__(self, cfg: ScenesConfig) -> None:
        size, length, seed, objects, kinds = cfg.size, cfg.length, cfg.seed, cfg.objects, cfg.kinds
        self.size, self.length, self.seed, self.objects = size, length, seed, objects
        self.classes = tuple(SOLIDS)[:kinds]
        fields = [("image", "u1", (size, size, 3)), ("instances", "u1", (size, size)), ("kinds", "i1", (MOST_OBJECTS,))]
        key = (_renderer(), size, length, seed, objects, kinds)
        self._rendered = RenderCache(key, np.dtype(fields), length, self._record)

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        """Return the image of scene `index`, (3, S, S) uint8, with the class of its largest object."""
        scene = self.scene(index)
        return Sample(torch.from_numpy(scene.image).permute(2, 0, 1), scene.label)

    def labels(self) -> Array:
        """Return the label of every scene, (N,) int64. This draws every scene."""
        return np.array([self.scene(index).label for index in range(self.length)])

    def where(self, index: int) -> str:
        """Return the name of scene `index`, for messages."""
        return f"shapes(seed={self.seed}, size={self.size})[{index}]"

    def scene(self, index: int) -> GeneratedScene:
        """Return scene `index` with its masks."""
        image, instances, kinds = self._rendered[index]
        return GeneratedScene(image.copy(), instances.copy(), kinds[kinds >= 0].astype(np.int64))

    def _record(self, index: int) -> tuple[Array, Array, Array]:
        """Return scene `index` as the fields of a record, with its kinds padded with -1."""
        scene = self.draw(index)
        kinds = np.pad(scene.kinds, (0, MOST_OBJECTS - len(scene.kinds)), constant_values=-1)
        return scene.image, scene.instances, kinds.astype(np.int8)

    def draw(self, index: int) -> GeneratedScene:
        """Draw scene `index`: one large object near the middle, smaller ones around, above or below it."""
        rng = np.random.default_rng(fold(self.seed, "shapes", index))
        count = int(rng.integers(self.objects[0], self.objects[1] + 1))
        kinds = rng.integers(len(self.classes), size=count)
        main = max(0, count - int(rng.integers(1, 3)))  # on top, or with one above it
        canvas = _Canvas(self.size, rng)
        for k in range(count):
            centre = rng.uniform(0.38, 0.62, 2) if k == main else rng.uniform(0.08, 0.92, 2)
            radius = rng.uniform(0.24, 0.36) if k == main else rng.uniform(0.10, 0.19)
            canvas.add(list(SOLIDS.values())[kinds[k]], k + 1, centre, radius, rng)
        return GeneratedScene(canvas.finish(), canvas.instances, kinds)


@cache
def _renderer() -> str:
    """Return a digest of the drawing code, so that the cache is not reused across versions."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


class _Canvas:
    """An image being drawn, (S, S, 3) float32 in linear light."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.instances = np.zeros((size, size), dtype=np.uint8)
        azimuth, elevation = rng.uniform(1.15, 1.85) * np.pi, rng.uniform(0.6, 1.0)  # light always comes from above
        self.light = np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)],
            dtype=np.float32,
        )
        y, x = self._grid(slice(0, size), slice(0, size))
        falloff = 1 + 0.35 * ((x - 0.5) * self.light[0] + (y - 0.5) * self.light[1])
        self.pixels = _albedo(x, y, rng, saturation=0.45) * (falloff * (0.35 + 0.6 * self.light[2]))[..., None]

    def add(self, solid: Solid, number: int, centre: Array, radius: float, rng: np.random.Generator) -> None:
        """Draw one object on top of the image: first its shadow, then its shaded surface."""
        height, angle, bevel = rng.uniform(0.15, 0.4), rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.9)
        drop = -self.light[:2] / self.light[2] * height * radius
        window = self._window(centre, (1.05 + height) * radius + np.abs(drop))
        y, x = self._grid(*window)
        c, s = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)

        def local(dx: float, dy: float) -> tuple[Array, Array]:
            px, py = x - np.float32(centre[0] + dx), y - np.float32(centre[1] + dy)
            return px * c + py * s, py * c - px * s

        pixels = self.pixels[window]
        pixels *= 1 - 0.6 * _shadow(*local(*drop), solid, height)[..., None]
        u, v = local(0, 0)
        distance = solid(u, v)
        lit, glint = _shade(distance, self.light, bevel, step=1 / (self.size * radius))
        surface = (
            _albedo(u * radius, v * radius, rng, saturation=0.85) * lit[..., None]
            + rng.uniform(0, 0.5) * glint[..., None]
        )
        alpha = np.clip(0.5 - distance * (radius * self.size), 0, 1)
        pixels += (surface - pixels) * alpha[..., None]
        self.instances[window][alpha > 0.5] = number

    def finish(self) -> Array:
        """Return the image as (S, S, 3) uint8."""
        return np.asarray(np.clip(self.pixels * 255 + 0.5, 0, 255), dtype=np.float32).astype(np.uint8)

    def _grid(self, rows: slice, columns: slice) -> tuple[Array, Array]:
        """Return y (h, 1) and x (1, w) of the pixel centres of a window."""
        centres = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        return centres[rows, None], centres[None, columns]

    def _window(self, centre: Array, reach: Array) -> tuple[slice, slice]:
        low = np.clip(((centre - reach) * self.size).astype(int), 0, self.size)
        high = np.clip(np.ceil((centre + reach) * self.size).astype(int) + 1, low + 2, self.size)
        return slice(low[1], high[1]), slice(low[0], high[0])


def _shadow(u: Array, v: Array, solid: Solid, blur: float) -> Array:
    """Return the darkness of the shadow, (h, w) in [0, 1].

    The unit circle limits the shadow, because outside a solid the distance to sharp tips is too small.
    """
    return np.asarray(np.clip(0.5 - np.maximum(solid(u, v), np.hypot(u, v) - 1) / (2 * blur), 0, 1))


def _shade(distance: Array, light: Array, bevel: float, *, step: float) -> tuple[Array, Array]:
    """Return diffuse and glossy light, (h, w) each, on a solid with a bevel of this width; step: pixel spacing."""
    rise = np.clip(1 + distance / bevel, 0, 1)  # 1 at the edge, 0 on the flat top: the sine of the surface's tilt
    gy, gx = np.gradient(distance, step)
    up = np.sqrt(1 - rise * rise)
    facing = rise * (gx * light[0] + gy * light[1]) + up * light[2]
    half = light + np.array([0, 0, 1], dtype=np.float32)
    half /= np.linalg.norm(half)
    glint = np.clip(rise * (gx * half[0] + gy * half[1]) + up * half[2], 0, 1) ** 24
    return 0.3 + 0.75 * np.clip(facing, 0, 1), glint


def _albedo(x: Array, y: Array, rng: np.random.Generator, *, saturation: float) -> Array:
    """Return the colour (h, w, 3) of a surface: two related colours mixed by a random texture."""
    hue, value = rng.uniform(), rng.uniform(0.55, 1)
    first = colorsys.hsv_to_rgb(hue, saturation * rng.uniform(0.4, 1), value)
    second = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.15, 0.15)) % 1, saturation * rng.uniform(0.4, 1), value * rng.uniform(0.35, 0.75)
    )
    mix = _texture(x, y, rng)[..., None]
    return np.asarray(np.array(first, dtype=np.float32) * (1 - mix) + np.array(second, dtype=np.float32) * mix)


def _texture(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Return the share of the second colour, (h, w) in [0, 1], with 4 to 9 periods per image.

    The texture is plain, stripes, checks, dots, rings or clouds.
    """
    kind, angle = rng.integers(6), rng.uniform(0, np.pi)
    turn = np.float32(2 * np.pi * rng.uniform(4, 9))
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = turn * (x * c + y * s), turn * (y * c - x * s)
    if kind == 0:
        return np.zeros_like(u)
    if kind == 1:
        return _edge(np.sin(u))
    if kind == 2:
        return _edge(np.sin(u / 2) * np.sin(v / 2))
    if kind == 3:
        return _edge(np.sin(u) + np.sin(v) - 0.8)
    if kind == 4:
        return _edge(np.sin(np.hypot(u, v)))
    waves = np.sin(0.4 * u + np.sin(0.3 * v)) + np.sin(0.5 * v + 2 * np.sin(0.2 * u)) + 0.5 * np.sin(0.9 * (u + v))
    return np.asarray(0.5 + 0.2 * waves)


def _edge(wave: Array) -> Array:
    return np.asarray(np.clip(0.5 + 2 * wave, 0, 1))


class RenderCache:
    """The scenes of a set as records. The first access to a scene renders its block.

    Args:
        key: identifies the set. Its repr must contain everything that the scenes depend on.
        record: data type of one scene.
        length: number of scenes. A set of more than LARGEST bytes is rendered scene by scene and not cached.
        draw: index -> scene, as a tuple of the record's fields.
    """

    def __init__(self, key: object, record: np.dtype[Any], length: int, draw: Callable[[int], tuple[Any, ...]]) -> None:
        self._name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        self._record, self._length, self._draw = record, length, draw
        self._blocks: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> Any:
        """Return the record of scene `index`."""
        if self._record.itemsize * self._length > LARGEST:
            return np.array(self._draw(index), self._record)[()]
        number = index // BLOCK
        if number not in self._blocks:
            self._blocks[number] = self._block(number)
        return self._blocks[number][index - number * BLOCK]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped blocks. Each worker maps them itself."""
        return {**self.__dict__, "_blocks": {}}

    def _block(self, number: int) -> np.ndarray:
        scenes = range(number * BLOCK, min((number + 1) * BLOCK, self._length))
        path = cache_folder() / "shapes" / self._name / f"{number:05d}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
            found: np.ndarray = np.load(path, mmap_mode="r")
            if found.dtype == self._record and len(found) == len(scenes):
                return found
        drawn = np.array([self._draw(index) for index in scenes], self._record)
        with contextlib.suppress(OSError):  # not writable, or full: keep the block in this process's memory
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, drawn)
        return drawn
