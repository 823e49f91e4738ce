"""References as a user writes them: PREFIX:PATH, or a bare path. Only a known prefix ends at a colon, so a path may hold colons."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from mae_transfer.home import at_home


def split(reference: str | Path, prefixes: Collection[str]) -> tuple[str, str]:
    """Return prefix and path of a reference, the prefix "" for a bare path; a leading ~ of the path becomes the home folder.

    Raises:
        ValueError: what stands before the colon is no prefix, and the whole names no file either.
    """
    text = str(reference)
    prefix, colon, rest = text.partition(":")
    if colon and prefix and prefix in prefixes:
        return prefix, at_home(rest)
    if colon and not (os.sep in prefix or Path(at_home(text)).exists()):
        known = ", ".join(f"{name}:" for name in prefixes if name)
        raise ValueError(f"no layout {prefix!r} in {text!r}; known are {known} or a bare path")
    return "", at_home(text)
