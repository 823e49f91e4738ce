"""Fingerprints of data sets: file names and sizes in a few bytes, so that a run does not resume on different files.

An annotation file counts by its content. A generated set is identified by its config; its fingerprint lists no files.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

THREADS = 16  # that read file sizes in parallel, because network file systems are slow
CHUNK = 4096  # files per task of a thread
SHOWN = 3  # names in a message


class Fingerprint(NamedTuple):
    """The state of a data set when a run began."""

    kind: str  # of the source: "Folder", "Coco", "Shapes"
    samples: int
    files: int  # 0 for a generated set
    bytes: int  # of all files
    digest: str  # 16 hex digits over file names, file sizes, annotations and class names
    listing: Tensor  # uint8, compressed: a line "name<tab>size" per file, to report what changed

    def saved(self) -> dict[str, Any]:
        """Return the fields as plain values and a tensor, for the training state."""
        return self._asdict()


def fingerprint(source: Any) -> Fingerprint:
    """Return the fingerprint of a source of any kind; a subset has the fingerprint of its whole source.

    Names are relative to the folder that all files share, so moving the whole set does not change its fingerprint.
    """
    while hasattr(source, "source"):
        source = source.source
    samples = len(source)
    lines: list[str] = []
    total = 0
    if os.path.isabs(first := source.where(0)) or os.path.exists(first):  # noqa: PTH110, PTH117 - Path is slow for millions
        groups = [[source.where(index) for index in range(samples)]]
        if hasattr(source, "map_of"):
            groups.append([str(source.map_of(index)) for index in range(samples)])
        for paths in groups:
            sizes = _sizes(paths)
            total += sum(sizes)
            lines += [f"{name}\t{size}" for name, size in zip(_relative(paths), sizes, strict=True)]
    files = len(lines)
    if hasattr(source, "json"):
        lines.append(f"{source.json.name}\t{hashlib.sha256(source.json.read_bytes()).hexdigest()}")
    text = "\n".join(sorted(lines)).encode("utf-8", "surrogateescape")
    about = f"{type(source).__name__} {samples} {list(source.classes)}\n".encode()
    packed = torch.frombuffer(bytearray(zlib.compress(text, 1)), dtype=torch.uint8)
    return Fingerprint(
        type(source).__name__, samples, files, total, hashlib.sha256(about + text).hexdigest()[:16], packed
    )


def change(before: Mapping[str, Any], now: Fingerprint) -> str | None:
    """Describe how a data set differs from a `saved` fingerprint; None if it does not."""
    if before["digest"] == now.digest:
        return None
    old, new = _parse_listing(before["listing"]), _parse_listing(now.listing)
    parts = {
        "removed": old.keys() - new.keys(),
        "added": new.keys() - old.keys(),
        "changed": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    words = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:SHOWN])}{', ...' * (len(names) > SHOWN)})"
        for what, names in parts.items()
        if names
    ]
    counts = f"{before['files']} files of {before['bytes']} bytes then, {now.files} of {now.bytes} now"
    return f"{counts}: {'; '.join(words) or 'the files are the same, the classes or the kind of data set differ'}"


def _sizes(paths: Sequence[str]) -> list[int]:
    """Return the sizes in bytes; -1 for a missing file."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [size for part in pool.map(lambda chunk: [_size(path) for path in chunk], chunks) for size in part]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - Path is slow for millions of files
    except OSError:
        return -1


def _relative(paths: Sequence[str]) -> Iterable[str]:
    shared = os.path.commonpath([os.path.dirname(path) for path in (min(paths), max(paths))])  # noqa: PTH120
    return (path[len(shared) :].lstrip(os.sep) for path in paths)


def _parse_listing(listing: Tensor) -> dict[str, str]:
    text = zlib.decompress(listing.numpy().tobytes()).decode("utf-8", "surrogateescape")
    pairs = (line.rpartition("\t") for line in text.split("\n") if line)
    return {name: size for name, _, size in pairs}
