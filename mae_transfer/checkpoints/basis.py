"""Files of PCA bases."""

from __future__ import annotations

from pathlib import Path

from mae_transfer.checkpoints.files import check_finite, metadata, read, write
from mae_transfer.core.normalize import checked
from mae_transfer.core.pca import Basis

FORMAT = "mae_transfer.basis/1"
TENSORS = ("mean", "components", "variance", "explained")


def save_basis(path: Path, basis: Basis) -> None:
    """Write a basis as .safetensors; the metadata hold the patch size and the statistics that it was fitted with."""
    about = {"format": FORMAT, "patch": basis.patch, "mean": basis.statistics.mean, "std": basis.statistics.std}
    write(path, {name: getattr(basis, name) for name in TENSORS}, about)


def load_basis(path: Path) -> Basis:
    """Read a file of `save_basis`; ValueError if it is missing, damaged or of another kind."""
    if not path.is_file():
        raise ValueError(
            f"the basis {str(path)!r} does not exist: fit one with tools/tokenizer_train.py pca CONFIG "
            f"--work-dir {path.parent}"
        )
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a PCA basis of this suite (format {about.get('format')!r}, not {FORMAT!r}); "
            "fit one with tools/tokenizer_train.py pca"
        )
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
        raise ValueError(f"{path} has tensors of shapes {shapes}, which do not fit patches of {patch} px; fit it again")
    check_finite(tensors, where=path)
    return Basis(**tensors, patch=patch, statistics=statistics)
