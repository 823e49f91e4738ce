"""A disk cache of generated scenes: files of many scenes in the cache folder, memory-mapped by every process."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.download import cache_folder

BLOCK = 256  # scenes per file
LARGEST = 2**28  # bytes; larger sets are not cached


class Rendered:
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
            _write(path, drawn)
        return drawn


def _write(path: Path, drawn: np.ndarray) -> None:
    """Write the array under a temporary name, then rename it, so that no process reads a partial file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            np.save(file, drawn)
        except OSError:
            temporary.unlink()
            raise
    temporary.replace(path)
