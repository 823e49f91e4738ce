"""Which files of a folder are images, and what is passed over."""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import PurePath

from PIL import Image

NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that PIL knows by name and cannot decode by itself


class PassedOver:
    """The files of a folder that are not used: how many of each kind, and one example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, name: bytes, why: str = "") -> None:
        """Count a file, by its suffix and by why it is not used."""
        kind = " ".join(filter(None, (PurePath(os.fsdecode(name)).suffix.lower() or "no suffix", why)))
        self.counts[kind] += 1
        self.examples.setdefault(kind, os.fsdecode(name))

    def update(self, other: PassedOver) -> None:
        """Add another folder's."""
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
    """Return the suffixes, in lower case, of the formats that this machine's PIL decodes."""
    return tuple(
        sorted(
            suffix.encode()
            for suffix, name in Image.registered_extensions().items()
            if name in Image.OPEN and name not in NO_PIXELS
        )
    )


def is_image(entry: os.DirEntry[bytes], passed: PassedOver, suffixes: tuple[bytes, ...] = ()) -> bool:
    """Return whether a file (no folder) is an image by its suffix, and a regular file or a dead link; count it in `passed` where it is not.

    suffixes: which to take, in lower case; none: all that the decoder reads.
    """
    if not entry.name.lower().endswith(suffixes or image_suffixes()):
        passed.add(entry.name)
    elif (
        not entry.is_file() and not entry.is_symlink()
    ):  # reading a pipe may never end; a dead link is reported where it is read
        passed.add(entry.name, "that is no regular file")
    else:
        return True
    return False
