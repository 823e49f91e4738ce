"""The outlines of the generated objects as signed distance fields: negative inside, zero on the edge.

Every solid fits the unit circle. The distance is exact or nearly exact inside. Beyond a sharp tip it is smaller than
the Euclidean distance.

Legend: u to the right and v down, in any shapes that broadcast; the distance has their common shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Solid = Callable[[Array, Array], Array]


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
