"""Numbers that others published, each with its source. Top-1 % on ImageNet-1K validation where nothing else is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """One number of a table. `pretrain` and `backbone` (or the number of tuned blocks, figure 9) are what a Result is matched by."""

    table: str
    pretrain: str
    column: str
    value: float
    source: str


MAE = "MAE paper, arXiv 2111.06377"


def _rows(table: str, source: str, columns: tuple[str, ...], rows: Mapping[str, tuple[float | None, ...]]) -> Iterator[Published]:
    for pretrain, values in rows.items():
        for column, value in zip(columns, values, strict=True):
            if value is not None:
                yield Published(table, pretrain, column, value, source)


SIZES = ("ViT-B/16", "ViT-L/16", "ViT-H/14", "ViT-H/14 at 448")
VARIANTS = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch")
BLOCKS = ("0", "half", "1", "2", "4", "6", "12", "18", "24")

PUBLISHED: tuple[Published, ...] = (
    *_rows("3", f"{MAE}, table 3", SIZES, {
        "none (scratch)": (82.3, 82.6, 83.1, None),
        "DINO": (82.8, None, None, None),
        "MoCo v3": (83.2, 84.1, None, None),
        "BEiT": (83.2, 85.2, None, None),
        "MAE": (83.6, 85.9, 86.9, 87.8),
    }),
    *_rows("12", f"{MAE}, table 12", SIZES, {
        "MAE": (68.0, 75.8, 76.6, None),
        "BEiT": (None, 52.1, None, None),
    }),
    *_rows("13", f"{MAE}, table 13", tuple(f"{variant}, {size}" for variant in VARIANTS for size in SIZES), {
        "MAE": (51.7, 41.8, 33.8, 36.8, 35.9, 57.1, 68.2, 76.7, 48.3, 59.9, 64.4, 66.5, 34.5, 45.3, 49.6, 50.9),
        "supervised": (45.8, 42.3, 41.3, None, 27.2, 29.6, 33.1, None, 49.4, 50.9, 50.3, None, 35.6, 37.5, 38.0, None),
    }),
    *_rows("figure 9", f"{MAE}, figure 9 (ViT-L/16, labels of the figure)", BLOCKS, {
        "MAE": (73.5, 79.1, 81.0, 83.1, 84.2, 84.4, 84.6, 84.7, 84.9),
        "MoCo v3": (77.6, None, 79.9, 80.8, 81.6, 81.9, 83.2, 83.8, 84.1),
    }),
)  # fmt: skip
