"""Download of released weights into the user's cache folder."""

from __future__ import annotations

from pathlib import Path

from mae_transfer import download
from mae_transfer.checkpoints.released import Weights


def fetch(entry: Weights, *, folder: Path | None = None) -> Path:
    """Return the file of an entry; download it unless it is cached.

    Raises:
        ValueError: the checksum is wrong, or the URL cannot be fetched.
    """
    return download.fetch(entry.url, folder or download.cache_folder(), checksum=entry.checksum)
