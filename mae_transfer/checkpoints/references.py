"""References of the form PREFIX:PATH or PATH. Only a known prefix counts, so a path may contain colons."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from mae_transfer.home import at_home


def split(reference: str | Path, prefixes: Collection[str]) -> tuple[str, str]:
    """Return prefix and path of a reference; the prefix of a bare path is "". A leading ~ becomes the home folder.

    Raises:
        ValueError: the text before the colon is not a prefix, and the reference is not a file either.
    """
    text = str(reference)
    prefix, colon, rest = text.partition(":")
    if colon and prefix and prefix in prefixes:
        return prefix, at_home(rest)
    if colon and not (os.sep in prefix or Path(at_home(text)).exists()):
        known = ", ".join(f"{name}:" for name in prefixes if name)
        raise ValueError(f"no layout {prefix!r} in {text!r}; use one of {known} or a bare path")
    return "", at_home(text)
