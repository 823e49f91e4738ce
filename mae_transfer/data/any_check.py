"""Find all defects of a data set in COCO's or ADE20K's layout. The layout is detected from the files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mae_transfer.data.ade_check import check_ade
from mae_transfer.data.coco_check import check_coco
from mae_transfer.data.reports import Defect


def check_any(
    root: Path,
    *,
    splits: Sequence[str] = (),
    annotations: str | None = None,
    images: str | None = None,
    masks: bool = True,
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool = True,
    values: Sequence[int] | None = None,
    image_suffix: str | None = None,
    map_suffix: str | None = None,
    allow_absent: bool = False,
) -> dict[str, list[Defect]]:
    """Return the defects by split, or by json file if `annotations` names one.

    Args:
        splits: the splits to check; empty: all that exist. The other options are those of check_coco and check_ade.

    Raises:
        ValueError: the folder has neither layout.
    """
    if annotations:
        return {annotations: check_coco(str(root), annotations=annotations, images=images, masks=masks)}
    jsons = [path.stem.removeprefix("instances_") for path in sorted(root.glob("annotations/instances_*.json"))]
    if jsons:
        return {split: check_coco(str(root), split=split, images=images, masks=masks) for split in splits or jsons}
    maps = [path.name for path in sorted(root.glob("annotations/*")) if path.is_dir()]
    if maps:
        check = partial(
            check_ade,
            str(root),
            classes=classes,
            reduce_zero_label=reduce_zero_label,
            values=values,
            image_suffix=image_suffix,
            map_suffix=map_suffix,
            allow_absent=allow_absent,
        )
        return {split: check(split=split) for split in splits or maps}
    raise ValueError(
        f"{str(root)!r} has neither annotations/instances_*.json (COCO) nor annotations/SPLIT/ (ADE20K): name the json "
        "(--annotations)"
    )
