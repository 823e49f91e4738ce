"""Generated scenes drawn once: a file in the cache folder that every process of the machine maps."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.download import cache_folder

LARGEST = 2**26  # bytes of a set that is kept; a larger one would take long to draw before the first step


def rendered(key: object, record: np.dtype[Any], length: int, scenes: Iterator[tuple[Any, ...]]) -> np.ndarray | None:
    """Return `length` scenes as an array of records, (N,), read-only and memory-mapped; None where they would fill more than LARGEST.

    Args:
        key: names the scenes; its repr must tell everything that they depend on.
        scenes: draws them in order; it is used only where the file is not there yet.
    """
    if record.itemsize * length > LARGEST:
        return None
    path = cache_folder() / f"shapes_{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or of another program
        found: np.ndarray = np.load(path, mmap_mode="r")
        if found.dtype == record and len(found) == length:
            return found
    drawn = np.fromiter(scenes, record, length)
    drawn.flags.writeable = False
    with contextlib.suppress(OSError):  # no place to write, or a full one: the scenes stay in this process's memory
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, drawn)
    return drawn


def _write(path: Path, drawn: np.ndarray) -> None:
    """Write the array under a temporary name first: another process may look for it now."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            np.save(file, drawn)
        except OSError:
            temporary.unlink()
            raise
    temporary.replace(path)
