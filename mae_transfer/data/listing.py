"""Find the image files of a folder, and count the other files."""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import PurePath

from PIL import Image

NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that PIL recognises but cannot decode by itself


class Ignored:
    """The unused files of a folder: the number of each kind, and one example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, name: bytes, why: str = "") -> None:
        """Count a file by its suffix and by the reason for ignoring it."""
        kind = " ".join(filter(None, (PurePath(os.fsdecode(name)).suffix.lower() or "no suffix", why)))
        self.counts[kind] += 1
        self.examples.setdefault(kind, os.fsdecode(name))

    def update(self, other: Ignored) -> None:
        """Add the counts of another folder."""
        self.counts.update(other.counts)
        self.examples = {**other.examples, **self.examples}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        kinds = [f"{count} x {kind}, {self.examples[kind]}" for kind, count in self.counts.most_common(5)]
        more = len(self.counts) - len(kinds)
        return f"{self.counts.total()} files ({'; '.join(kinds)}{f'; and {more} kinds more' if more else ''})"


@functools.cache
def image_suffixes() -> tuple[bytes, ...]:
    """Return the lower-case suffixes of the formats that the installed PIL decodes."""
    return tuple(
        sorted(
            suffix.encode()
            for suffix, name in Image.registered_extensions().items()
            if name in Image.OPEN and name not in NO_PIXELS
        )
    )


def is_image(entry: os.DirEntry[bytes], ignored: Ignored, suffixes: tuple[bytes, ...] = ()) -> bool:
    """Return whether an entry that is not a folder is an image file, by its suffix. Count it in `ignored` if not.

    Pipes and devices are ignored, because reading them may block forever. Dead links are reported when they are read.

    Args:
        suffixes: lower-case suffixes to accept; empty: all that the decoder reads.
    """
    if not entry.name.lower().endswith(suffixes or image_suffixes()):
        ignored.add(entry.name)
    elif not entry.is_file() and not entry.is_symlink():
        ignored.add(entry.name, "that is not a regular file")
    else:
        return True
    return False
