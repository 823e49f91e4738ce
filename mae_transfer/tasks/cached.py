"""Arrays with a row per image that all ranks compute once, in one file that every run then maps into memory.

The ranks compute parts of consecutive images, each in a file of its own. An interruption loses at most one part per
rank. The parts are then joined. Another run that needs the same file waits meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mae_transfer.disk import atomic_write, explain_failure, remove_leftovers, write_text
from mae_transfer.engine.dist import Dist, agree, on_main
from mae_transfer.locks import locked

_LOG = logging.getLogger(__name__)
PATIENCE_S = 60.0
IMAGES_PER_PART = 16384
BYTES_PER_PART = 2**30  # a part is held in memory
BLOCK = 2**20
BLOCKS = 4096  # the checksum covers this many blocks, spread evenly: all of a file up to 4 GiB
REMEDY = "delete it, then it is computed again"


def compute_once(
    path: Path,
    compute: Callable[[range], np.ndarray],
    dist: Dist,
    *,
    images: int,
    row: np.dtype[Any],
    batch: int,
    about: Mapping[str, str] | None = None,
) -> None:
    """Compute and write the .npy file unless it is complete. Every rank calls it.

    Args:
        compute: (range of images) -> their rows, of type `row`.
        row: type of the row of an image, with its shape.
        batch: images per forward pass. Parts begin at its multiples, so rows do not depend on the number of ranks.
        about: what the rows depend on, in words. It is written beside the file, with a checksum. None: neither.
    Raises:
        ValueError: the file or a part is damaged, or it holds rows of something else.
        OSError: it cannot be written. Nothing incomplete is at `path`.
    """
    with ExitStack() as held:
        ready = False
        while not ready:  # a minute at a time, because other ranks would give up
            ready = agree(lambda: path.name in _names(path.parent) or _acquired(held, path), dist)
        parts = _parts(path, images, row, batch=batch, ranks=dist.world)
        missing = agree(lambda: _missing(path, parts), dist)  # a network file system shows files late to other ranks
        if missing is not None:
            _compute([parts[number] for number in missing[dist.rank :: dist.world]], compute)
            _wait(dist)
            on_main(dist, lambda: _join(path, parts, row, about))
    on_main(dist, lambda: _check(path, images, row, about))


def _acquired(held: ExitStack, path: Path) -> bool:
    """Return whether this run may compute the rows; False: after a minute another run still does."""
    lock = path.with_name(f".{path.stem}.lock")
    try:
        held.enter_context(locked(lock, owner=f"process {os.getpid()} on {socket.gethostname()}", patience=PATIENCE_S))
    except ValueError:
        _LOG.info("waiting for %s: another run computes it", path)
        return False
    except OSError as error:
        raise explain_failure(error, path) from None
    return True


def _wait(dist: Dist) -> None:
    if dist.world > 1:
        torch.distributed.barrier(group=dist.side)


class Part(NamedTuple):
    """The rows of consecutive images, in a file of their own until all parts are joined."""

    path: Path
    images: range


def _parts(path: Path, images: int, row: np.dtype[Any], *, batch: int, ranks: int) -> list[Part]:
    most = min(IMAGES_PER_PART, BYTES_PER_PART // row.itemsize, -(-images // ranks))
    size = batch * max(1, most // batch)
    spans = [range(start, min(start + size, images)) for start in range(0, images, size)]
    return [Part(path.with_name(f".{path.stem}.{span.start}-{span.stop}.npy"), span) for span in spans]


def _missing(path: Path, parts: Sequence[Part]) -> list[int] | None:
    """Return the numbers of the parts to compute; None if the whole file exists."""
    names = _names(path.parent)
    return None if path.name in names else [n for n, part in enumerate(parts) if part.path.name not in names]


def _names(folder: Path) -> set[str]:
    """Return the names of the files in a folder; none if it cannot be read.

    A listing, unlike a look at a name, does not make a network file system remember that a file is absent.
    """
    try:
        return {file.name for file in folder.iterdir()}
    except OSError:
        return set()


def _compute(parts: Sequence[Part], compute: Callable[[range], np.ndarray]) -> None:
    """Compute and write this rank's parts, each atomically: after an interruption only the missing ones remain."""
    for part in parts:
        rows = compute(part.images)
        with atomic_write(part.path) as temporary:
            _save(temporary, [rows])


def _join(path: Path, parts: Sequence[Part], row: np.dtype[Any], about: Mapping[str, str] | None) -> None:
    """Write the parts into one file, with what it is about beside it, and remove them."""
    found = [_mapped(part.path, len(part.images), row) for part in parts]
    with atomic_write(path) as temporary:
        _save(temporary, found)
        if about is not None:
            note = {"about": dict(about), "checksum": _checksum(temporary)}
            write_text(_note(path), json.dumps(note, indent=1) + "\n")
    for part in path.parent.glob(f".{path.stem}.*.npy"):  # also those of killed runs
        part.unlink()
    for name in (f"{path.stem}.*", f".{path.stem}.*"):
        remove_leftovers(path.parent, name)


def _save(path: Path, parts: Sequence[np.ndarray]) -> None:
    """Write arrays below each other as one .npy file. Unlike a memory map, a full disk then raises OSError."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.reshape(-1).view(np.uint8).data)


def _mapped(path: Path, images: int, row: np.dtype[Any]) -> np.ndarray:
    """Return the rows of a file. ValueError if it is damaged or has other rows."""
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from None
    shape = (images, *row.shape)
    if rows.dtype != row.base or rows.shape != shape:
        raise ValueError(f"{path} has {rows.dtype} {rows.shape} instead of {row.base} {shape}: {REMEDY}")
    return rows


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _check(path: Path, images: int, row: np.dtype[Any], about: Mapping[str, str] | None) -> None:
    _mapped(path, images, row)
    if about is None:
        return
    try:
        note = json.loads(_note(path).read_text(encoding="utf-8"))
        theirs, checksum = dict(note["about"]), str(note["checksum"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: {_note(path).name}, which describes it, cannot be read ({error!r}); {REMEDY}"
        ) from None
    if differ := [key for key in {**about, **theirs} if about.get(key) != theirs.get(key)]:
        key = differ[0]
        raise ValueError(f"{path} has rows of other {key}: {theirs.get(key)!r} instead of {about.get(key)!r}; {REMEDY}")
    if checksum != _checksum(path):
        raise ValueError(f"{path} is damaged (its checksum is not {checksum}): {REMEDY}")


def _checksum(path: Path) -> str:
    """Return the crc32 of blocks spread evenly over the file, up to all of it."""
    size, value = path.stat().st_size, 0
    count = min(BLOCKS, -(-size // BLOCK))
    with path.open("rb") as file:
        for number in range(count):
            file.seek(number * BLOCK if count < BLOCKS else number * (size - BLOCK) // (count - 1))
            value = zlib.crc32(file.read(BLOCK), value)
    return f"{value:08x}"
