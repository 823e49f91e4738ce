"""The model zoo: small backbones that this project trained. They are part of the package (mae_transfer/zoo)."""

from __future__ import annotations

import difflib
from pathlib import Path

from mae_transfer.checkpoints.files import sha256

FOLDER = Path(__file__).parents[1] / "zoo"
SUMS = "SHA256SUMS"  # a line per weight file, as sha256sum writes it


def names() -> list[str]:
    """Return the names of the zoo's models, sorted."""
    return sorted(_sums())


def weight_path(name: str) -> Path:
    """Return the weight file of a model.

    Raises:
        ValueError: no model has this name, or its file is missing or not the one that was released.
    """
    sums = _sums()
    if name not in sums:
        nearest = difflib.get_close_matches(name, sorted(sums), n=len(sums), cutoff=0.0)
        raise ValueError(f"no model {name!r} in the zoo; it has (nearest name first): {', '.join(nearest)}")
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing; install mae_transfer again")
    if sha256(path) != sums[name]:
        raise ValueError(
            f"{path} is not the released file: its sha256 is not that in {SUMS}; install mae_transfer again"
        )
    return path


def _sums() -> dict[str, str]:
    """Return the sha256 of each model's file by the model's name."""
    try:
        lines = (FOLDER / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{FOLDER / SUMS} cannot be read ({error.strerror}); install mae_transfer again") from None
    pairs = (line.split() for line in lines if line.strip())
    return {file.removesuffix(".safetensors"): digest for digest, file in pairs}
