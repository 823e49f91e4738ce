"""Released weights, fetched once and kept in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from mae_transfer import download
from mae_transfer.checkpoints.released import Weights


def cache_folder() -> Path:
    """Return where fetched weights are kept: $MAE_TRANSFER_CACHE, or mae_transfer under $XDG_CACHE_HOME, or under ~/.cache."""
    own = os.environ.get("MAE_TRANSFER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae_transfer"


def fetch(entry: Weights, *, folder: Path | None = None) -> Path:
    """Return the file of an entry, downloaded unless it is there; ValueError where its checksum is wrong or its address does not answer."""
    return download.fetch(entry.url, folder or cache_folder(), checksum=entry.checksum)
