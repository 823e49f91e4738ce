"""A PCA basis as a file."""

from __future__ import annotations

from pathlib import Path

from mae_transfer.checkpoints.files import metadata, read, write
from mae_transfer.core.normalize import Statistics
from mae_transfer.core.pca import Basis

FORMAT = "mae_transfer.basis/1"
TENSORS = ("mean", "components", "variance", "explained")


def save_basis(path: Path, basis: Basis) -> None:
    """Write a basis as .safetensors, with the patch and the statistics that it was fitted for in the metadata."""
    about = {"format": FORMAT, "patch": basis.patch, "mean": basis.statistics.mean, "std": basis.statistics.std}
    write(path, {name: getattr(basis, name) for name in TENSORS}, about)


def load_basis(path: Path) -> Basis:
    """Read what `save_basis` wrote; ValueError where the file is missing, damaged or another."""
    if not path.is_file():
        raise ValueError(f"the basis {str(path)!r} does not exist: fit one with tools/tokenizer_train.py pca CONFIG --work-dir {path.parent}")
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is no PCA basis of this suite (format {about.get('format')!r}, not {FORMAT!r})")
    return Basis(**read(path), patch=about["patch"], statistics=Statistics(tuple(about["mean"]), tuple(about["std"])))
