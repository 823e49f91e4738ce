"""A PCA basis as a file."""

from __future__ import annotations

from pathlib import Path

from mae_transfer.checkpoints.files import check_finite, metadata, read, write
from mae_transfer.core.normalize import checked
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
        raise ValueError(
            f"the basis {str(path)!r} does not exist: fit one with tools/tokenizer_train.py pca CONFIG --work-dir {path.parent}"
        )
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is no PCA basis of this suite (format {about.get('format')!r}, not {FORMAT!r})")
    tensors, patch, mean, std = read(path), *(about.get(key) for key in ("patch", "mean", "std"))
    if not (isinstance(mean, list) and isinstance(std, list) and isinstance(patch, int)) or set(tensors) != set(
        TENSORS
    ):
        raise ValueError(
            f"{path} lacks a part of a PCA basis ({', '.join(TENSORS)}, patch, mean and std); fit it again"
        )
    statistics = checked(mean, std, where=f"metadata of {path}")
    values = patch**2 * len(mean)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rows = shapes["variance"]
    if (
        shapes != {"mean": (values,), "components": (*rows, values), "variance": rows, "explained": rows}
        or len(rows) != 1
    ):
        raise ValueError(
            f"{path} has tensors of shapes {shapes}, which are no basis of patches of {patch} px; fit it again"
        )
    check_finite(tensors, where=path)
    return Basis(**tensors, patch=patch, statistics=statistics)
