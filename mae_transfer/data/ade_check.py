"""Find all defects of a data set in ADE20K's layout: pairs, images, sizes, map values, classes that no map contains.

`tools/prepare_data.py check` prints the defects. A run checks its data sets the same way before its first step. The
check decodes every image and map with the code that training uses. If a set has no broken files, the user's cache
folder keeps the result under the names, sizes and times of its files, and the next run only lists the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae_transfer.data.ade import Ade, MapSource, class_names, folders, pairs_in
from mae_transfer.data.coco_check import READERS
from mae_transfer.data.decode import UnreadableImage, decode_file
from mae_transfer.data.map_values import VALUES, VOID, BrokenMap, Coding, coding_of, read_map
from mae_transfer.data.reports import EXAMPLES, Defect, Defects, collected, report, watched
from mae_transfer.disk import write_text
from mae_transfer.download import cache_folder

ABSENT = "class without a pixel in any map"
FORMAT = 1  # version of the cached result; increase it when the check finds more than before
Pairs = Sequence[tuple[bytes, bytes]]


class Scan(NamedTuple):
    """The findings in all pairs of a set."""

    files: list[Defect]  # files that a run cannot read
    odd: list[Defect]  # unusual files that a run uses
    values: list[int]  # sorted values that occur in any map


class Seen(NamedTuple):
    """The findings in one pair."""

    defects: list[tuple[str, str, str]]  # kind, where, remedy
    odd: list[tuple[str, str]]  # kind, where
    values: np.ndarray  # distinct values of the map


def check_ade(
    root: str,
    *,
    split: str = "training",
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool = True,
    values: Sequence[int] | None = None,
    image_suffix: str | None = None,
    map_suffix: str | None = None,
    allow_absent: bool = False,
) -> list[Defect]:
    """Return every defect of a split, or an empty list. The arguments are those of data.ade.Ade."""
    try:
        names = class_names(Path(root).expanduser(), classes)
        coding = coding_of(
            len(names), reduce_zero_label=reduce_zero_label, values=None if values is None else tuple(values)
        )
        images, maps = folders(root, split)
    except ValueError as error:
        return [Defect("unusable data set", 1, (str(error),))]
    pairs, defects = pairs_in(images, maps, image_suffix=image_suffix, map_suffix=map_suffix)
    scan = _check_pairs(images, maps, pairs, coding, what=split)
    return [*defects, *scan.files, *_absent(scan, coding, names, allow=allow_absent), *scan.odd]


def check_sets(sets: Mapping[str, MapSource], *, skip: int = 0) -> None:
    """Raise ValueError with every defect of the sets that a run has opened. Generated sets are not checked.

    Args:
        sets: the sets by their purpose, for messages.
        skip: accept and report up to this many unreadable files.
    """
    for what, source in sets.items():
        if isinstance(source, Ade):
            scan = _check_pairs(source.images, source.maps, source.pairs(), source.coding, what=what, use_cache=True)
            unread = sum(defect.number for defect in scan.files)
            absent = _absent(scan, source.coding, source.classes, allow=source.allow_absent)
            found = [*(scan.files if unread > skip else ()), *(defect for defect in absent if not defect.policy)]
            if found:
                lines = "\n  ".join(map(str, found))
                raise ValueError(f"the {what} set, {source.images} and {source.maps}:\n  {lines}")
            for defect in (*scan.files, *absent, *scan.odd):
                report(f"the {what} set: {defect}")


def _check_pairs(images: Path, maps: Path, pairs: Pairs, coding: Coding, *, what: str, use_cache: bool = False) -> Scan:
    """Return the findings in all pairs. use_cache: use the cached result if there is one."""
    cache = cache_folder() / "label_maps" / f"{_fingerprint(images, maps, pairs, coding)}.json"
    if use_cache and (cached := _read_cache(cache)):
        return cached
    files, odd, values = Defects(), Defects(), np.zeros(VALUES, dtype=bool)
    with ThreadPoolExecutor(READERS) as readers:
        results = readers.map(lambda pair: _check_pair(images, maps, *map(os.fsdecode, pair), coding=coding), pairs)
        for seen in watched(results, what=f"checking {what}", total=len(pairs)):
            for kind, where, remedy in seen.defects:
                files.add(kind, where, remedy=remedy)
            for kind, where in seen.odd:
                odd.add(kind, where, policy="used anyway")
            values[seen.values] = True
    scan = Scan(files.collected(), odd.collected(), np.flatnonzero(values).tolist())
    if not scan.files:
        _write_cache(cache, scan)
    return scan


def _check_pair(images: Path, maps: Path, image: str, label_map: str, *, coding: Coding) -> Seen:
    """Return the findings in one pair."""
    defects: list[tuple[str, str, str]] = []
    size, values = None, np.zeros(0, dtype=np.int64)
    with collected() as notes:
        try:
            pixels = decode_file(images / image)
            size = (pixels.shape[1], pixels.shape[2])
        except FileNotFoundError:
            defects.append(("missing image", image, ""))
        except (UnreadableImage, OSError):
            defects.append(("unreadable image", image, ""))
        try:
            stored = read_map(maps / label_map, size=size)
            values = np.flatnonzero(np.bincount(stored.ravel()))
            coding.labels(stored, maps / label_map)
        except BrokenMap as error:
            defects.append((error.kind, f"{label_map} ({error.seen})" if error.seen else label_map, error.remedy))
        except OSError:
            defects.append(("missing map", label_map, ""))
    odd = [("odd file", message) for message in notes]
    if not defects and not coding.present(values).any():
        odd.append(("empty map: no pixel has a class", label_map))
    return Seen(defects, odd, values)


def _absent(scan: Scan, coding: Coding, names: Sequence[str], *, allow: bool) -> list[Defect]:
    """Return the classes that no map contains, since the mean IoU leaves them out; none if no map could be read."""
    present = coding.present(np.array(scan.values, dtype=np.int64))
    if present.all() or not scan.values:
        return []
    if not present.any():
        return [
            Defect("map set in which no pixel has a class", 1, (_stored_values(scan.values),), remedy=coding.remedy)
        ]
    missing = np.flatnonzero(~present).tolist()
    examples = tuple(f"{names[label]!r} (value {coding.value(label)})" for label in missing[:EXAMPLES])
    remedy = f"{_stored_values(scan.values)}; allow_absent=True accepts this (check: --allow-absent)"
    if coding.values is None and set(scan.values) & set(VOID):
        hint = "if 255 is a class here, give the value of each class: values=(0, 255)"
        remedy = f"{_stored_values(scan.values)}; {hint}; {remedy.partition('; ')[2]}"
    return [Defect(ABSENT, len(missing), examples, *(("", "left out of the means") if allow else (remedy, "")))]


def _stored_values(values: Sequence[int]) -> str:
    shown = ", ".join(f"{value}{' (void)' if value in VOID else ''}" for value in values[:8])
    return f"the maps contain the values {shown or 'none'}{' ...' if len(values) > 8 else ''}"


def _fingerprint(images: Path, maps: Path, pairs: Pairs, coding: Coding) -> str:
    """Return the cache key of a set: a digest of its folders, its files' names, sizes and times, and the coding."""
    digest = hashlib.sha256(json.dumps([FORMAT, str(images.resolve()), str(maps.resolve()), coding]).encode())
    for pair in pairs:
        for folder, name in zip((images, maps), pair, strict=True):
            with contextlib.suppress(OSError):  # a missing file is found when it is read
                about = (folder / os.fsdecode(name)).stat()
                digest.update(name + f"\0{about.st_size} {about.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _read_cache(cache: Path) -> Scan | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        odd, values = json.loads(cache.read_text(encoding="utf-8"))
        return Scan(
            [], [Defect(kind, number, tuple(examples), policy=policy) for kind, number, examples, policy in odd], values
        )
    return None


def _write_cache(cache: Path, scan: Scan) -> None:
    with contextlib.suppress(OSError):  # without the file the next run checks again
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            cache, json.dumps([[(one.kind, one.number, one.examples, one.policy) for one in scan.odd], scan.values])
        )
