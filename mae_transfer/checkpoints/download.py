"""Released weights, fetched once and kept in the user's cache folder."""

from __future__ import annotations

from pathlib import Path

from mae_transfer import download
from mae_transfer.checkpoints.released import Weights


def fetch(entry: Weights, *, folder: Path | None = None) -> Path:
    """Return the file of an entry, downloaded unless it is there; ValueError where its checksum is wrong or its address does not answer."""
    return download.fetch(entry.url, folder or download.cache_folder(), checksum=entry.checksum)
