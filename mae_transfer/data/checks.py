"""Find all defects of a data set in COCO's or ADE20K's layout: its files, and the annotations by their rules.

`tools/prepare_data.py check` prints the defects. A run checks its data sets the same way before its first step. Images
of COCO are opened to read their size; images and maps of ADE20K are decoded with the code that training uses. If a set
of maps has no broken files, the user's cache folder keeps the result under the names, sizes and times of its files, and
the next run only lists the files.

Legend: H x W pixels of an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mae_transfer.config import validate
from mae_transfer.data.ade import (
    VALUES,
    VOID,
    Ade,
    AdeConfig,
    BrokenMap,
    Coding,
    MapSource,
    find_layout,
    find_pairs,
    read_map,
)  # fmt: skip
from mae_transfer.data.coco import Coco, CocoConfig, ObjectSource, list_classes, load_json, locate
from mae_transfer.data.coco_rules import examine
from mae_transfer.data.decode import UnreadableImage, decode_file, size_of
from mae_transfer.data.reports import EXAMPLES, Defect, Defects, collect_notes, refuse, report, stopping, track_progress
from mae_transfer.disk import cache_folder, write_text

S = TypeVar("S", CocoConfig, AdeConfig)
READERS = 8  # files opened at a time; threads hide the latency of network file systems
ABSENT = "class without a pixel in any map"
FORMAT = 1  # version of the cached result; increase it when the check finds more than before
Pairs = Sequence[tuple[bytes, bytes]]
Noted = list[tuple[str, str, str, str]]  # kind, where, remedy, policy of each defect


class MapFindings(NamedTuple):
    """The findings in all images and maps of a set."""

    defects: list[Defect]  # files that a run cannot read, then unusual files that it uses
    values: list[int]  # sorted values that occur in any map


def check_any(root: Path, *, splits: Sequence[str] = (), options: Mapping[str, Any]) -> dict[str, list[Defect]]:
    """Return the defects by split, or by json file if the options name one. The layout is detected from the files.

    Args:
        splits: the splits to check; empty: all that exist.
        options: of CocoConfig and AdeConfig. Those of the other layout are ignored.

    Raises:
        ValueError: the folder is missing, or has neither layout.
    """
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is not a folder: name the one of the data set (--root)")
    jsons = [path.stem.removeprefix("instances_") for path in sorted(root.glob("annotations/instances_*.json"))]
    if named := options.get("annotations"):
        return {named: check_coco(_configure(CocoConfig, root, options))}
    if jsons:
        coco = _configure(CocoConfig, root, options)
        found = {split: check_coco(coco.model_copy(update={"split": split})) for split in splits or jsons}
        return _compare_classes(coco, found)
    maps = [path.name for path in sorted(root.glob("annotations/*")) if path.is_dir()]
    if maps:
        ade = _configure(AdeConfig, root, options)
        return {split: check_ade(ade.model_copy(update={"split": split})) for split in splits or maps}
    raise ValueError(
        f"{str(root)!r} has neither annotations/instances_*.json (COCO) nor annotations/SPLIT/ (ADE20K): name the json "
        "(--annotations). A folder of images without annotations is checked when a run starts"
    )


def _compare_classes(cfg: CocoConfig, found: dict[str, list[Defect]]) -> dict[str, list[Defect]]:
    """Add a defect to every usable split whose classes are not those of the first."""
    usable = {split: defects for split, defects in found.items() if not stopping(defects)}
    classes: dict[str, tuple[str, ...]] = {}
    for split in usable:
        file, _ = locate(cfg.model_copy(update={"split": split}))
        classes[split] = list_classes(load_json(file)["categories"])
    for split, names in classes.items():
        first = next(iter(classes))
        if names != classes[first]:
            different = ", ".join(sorted(set(names) ^ set(classes[first]))[:EXAMPLES]) or "the order differs"
            remedy = "a run needs the same categories in both, in the same order of ids"
            usable[split].append(Defect(f"classes other than those of {first}", 1, (different,), remedy))
    return found


def _configure(schema: type[S], root: Path, options: Mapping[str, Any]) -> S:
    known = {name: value for name, value in options.items() if name in schema.model_fields}
    return validate({"root": str(root), **known}, schema, where="options of the check")


def check_coco(cfg: CocoConfig) -> list[Defect]:
    """Return every defect of a split, or an empty list. Use masks=False for a set that is used for boxes only."""
    try:
        file, folder = locate(cfg)
        content = load_json(file)
    except ValueError as error:
        return [Defect("unusable data set", 1, (str(error),))]
    found = examine(content, masks=cfg.masks)
    listed = [(folder / image["file_name"], (image["height"], image["width"])) for image in found.images]
    return [*found.defects, *_check_sizes(listed)]


def check_images(sets: Mapping[str, ObjectSource], *, skip: int = 0) -> None:
    """Check the size of every image of the sets that a run has opened. Generated sets are not checked.

    Args:
        sets: the sets by their purpose, for messages.
        skip: accept and report up to this many unreadable files per set.

    Raises:
        ValueError: an image is missing, unreadable, or differs in size from the json.
    """
    for what, source in sets.items():
        if isinstance(source, Coco):
            defects = _check_sizes([(Path(source.where(index)), source.size(index)) for index in range(len(source))])
            if sum(defect.number for defect in defects) > skip:
                refuse(defects, where=f"the {what} set, {source.folder}")
            for defect in defects:
                report(f"the {what} set, {source.folder}: {defect}")


def _check_sizes(images: Sequence[tuple[Path, tuple[int, int]]]) -> list[Defect]:
    """Return the defects of images with given sizes (H, W)."""
    found = Defects()
    with ThreadPoolExecutor(READERS) as readers:
        sizes = track_progress(readers.map(size_of, [path for path, _ in images]), what="images", total=len(images))
        for (path, stated), size in zip(images, sizes, strict=True):
            if isinstance(size, str):
                found.add(size, path.name)
            elif size != stated:
                both = f"{size[1]} x {size[0]}, json: {stated[1]} x {stated[0]}"
                found.add("image whose size differs from the json", f"{path.name} ({both})")
    return found.collected()


def check_ade(cfg: AdeConfig) -> list[Defect]:
    """Return every defect of a split, or an empty list."""
    try:
        names, coding, images, maps = find_layout(cfg)
    except ValueError as error:
        return [Defect("unusable data set", 1, (str(error),))]
    pairs, defects = find_pairs(cfg, images, maps)
    found = _check_pairs(images, maps, pairs, coding, what=cfg.split)
    broken = stopping(found.defects)
    return [*defects, *broken, *_absent(found, coding, names, allow=cfg.allow_absent), *found.defects[len(broken) :]]


def check_maps(sets: Mapping[str, MapSource], *, skip: int = 0) -> None:
    """Raise ValueError with every defect of the sets that a run has opened. Generated sets are not checked.

    Args:
        sets: the sets by their purpose, for messages.
        skip: accept and report up to this many unreadable files.
    """
    for what, source in sets.items():
        if isinstance(source, Ade):
            found = _check_pairs(source.images, source.maps, source.pairs(), source.coding, what=what, use_cache=True)
            absent = _absent(found, source.coding, source.classes, allow=source.allow_absent)
            broken = stopping(found.defects)
            unread = sum(defect.number for defect in broken)
            if wrong := [*(broken if unread > skip else ()), *stopping(absent)]:
                lines = "\n  ".join(map(str, wrong))
                raise ValueError(f"the {what} set, {source.images} and {source.maps}:\n  {lines}")
            for defect in (*found.defects, *absent):
                report(f"the {what} set: {defect}")


def _check_pairs(
    images: Path, maps: Path, pairs: Pairs, coding: Coding, *, what: str, use_cache: bool = False
) -> MapFindings:
    """Return the findings in all pairs. use_cache: use the cached result if there is one."""
    cache = cache_folder() / "label_maps" / f"{_cache_key(images, maps, pairs, coding)}.json"
    if use_cache and (cached := _read_cache(cache)):
        return cached
    found, values = Defects(), np.zeros(VALUES, dtype=bool)
    with ThreadPoolExecutor(READERS) as readers:
        results = readers.map(lambda pair: _check_pair(images, maps, *map(os.fsdecode, pair), coding=coding), pairs)
        for noted, occurring in track_progress(results, what=f"checking {what}", total=len(pairs)):
            for kind, where, remedy, policy in noted:
                found.add(kind, where, remedy=remedy, policy=policy)
            values[occurring] = True
    findings = MapFindings(found.collected(), np.flatnonzero(values).tolist())
    if not stopping(findings.defects):
        _write_cache(cache, findings)
    return findings


def _check_pair(images: Path, maps: Path, image: str, label_map: str, *, coding: Coding) -> tuple[Noted, np.ndarray]:
    """Return the defects of one pair, and the distinct values of its map."""
    noted: Noted = []
    size, values = None, np.zeros(0, dtype=np.int64)
    with collect_notes() as notes:
        try:
            pixels = decode_file(images / image)
            size = (pixels.shape[1], pixels.shape[2])
        except FileNotFoundError:
            noted.append(("missing image", image, "", ""))
        except (UnreadableImage, OSError):
            noted.append(("unreadable image", image, "", ""))
        try:
            stored = read_map(maps / label_map, size=size)
            values = np.flatnonzero(np.bincount(stored.ravel()))
            coding.labels(stored, maps / label_map)
        except BrokenMap as error:
            noted.append((error.kind, f"{label_map} ({error.seen})" if error.seen else label_map, error.remedy, ""))
        except OSError:
            noted.append(("missing map", label_map, "", ""))
    if not noted and not coding.present(values).any():
        noted.append(("empty map: no pixel has a class", label_map, "", "used anyway"))
    return [*(("odd file", message, "", "used anyway") for message in notes), *noted], values


def _absent(found: MapFindings, coding: Coding, names: Sequence[str], *, allow: bool) -> list[Defect]:
    """Return the classes that no map contains, since the mean IoU leaves them out; none if no map could be read."""
    present = coding.present(np.array(found.values, dtype=np.int64))
    if present.all() or not found.values:
        return []
    stored = _describe_values(found.values)
    if not present.any():
        return [Defect("map set in which no pixel has a class", 1, (stored,), remedy=coding.remedy)]
    missing = np.flatnonzero(~present).tolist()
    examples = tuple(f"{names[label]!r} (value {coding.value(label)})" for label in missing[:EXAMPLES])
    if allow:
        return [Defect(ABSENT, len(missing), examples, policy="left out of the means")]
    hint = ""
    if coding.values is None and set(found.values) & set(VOID):
        hint = "if 255 is a class here, give the value of each class: values=(0, 255); "
    remedy = f"{stored}; {hint}allow_absent=True accepts this (check: --allow-absent)"
    return [Defect(ABSENT, len(missing), examples, remedy)]


def _describe_values(values: Sequence[int]) -> str:
    shown = ", ".join(f"{value}{' (void)' if value in VOID else ''}" for value in values[:8])
    return f"the maps contain the values {shown or 'none'}{' ...' if len(values) > 8 else ''}"


def _cache_key(images: Path, maps: Path, pairs: Pairs, coding: Coding) -> str:
    """Return a digest of a set's folders, its files' names, sizes and times, and the coding."""
    digest = hashlib.sha256(json.dumps([FORMAT, str(images.resolve()), str(maps.resolve()), coding]).encode())
    for pair in pairs:
        for folder, name in zip((images, maps), pair, strict=True):
            with contextlib.suppress(OSError):  # a missing file is found when it is read
                about = (folder / os.fsdecode(name)).stat()
                digest.update(name + f"\0{about.st_size} {about.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _read_cache(cache: Path) -> MapFindings | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        odd, values = json.loads(cache.read_text(encoding="utf-8"))
        defects = [Defect(kind, number, tuple(examples), policy=policy) for kind, number, examples, policy in odd]
        return MapFindings(defects, values)
    return None


def _write_cache(cache: Path, found: MapFindings) -> None:
    odd = [(one.kind, one.number, one.examples, one.policy) for one in found.defects]
    with contextlib.suppress(OSError):  # without the file the next run checks again
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, json.dumps([odd, found.values]))
