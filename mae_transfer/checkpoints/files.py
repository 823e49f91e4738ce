"""Weight files: read without running code, written whole or not at all, filled into a model to the last tensor."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
ABOUT = "mae_transfer"  # the key of a file's metadata


def read(path: Path) -> dict[str, Any]:
    """Return what a .safetensors, .npz or torch file holds, on the CPU; nothing in it is run.

    `argparse.Namespace` is let through: MAE's fine-tuned and user-trained files carry their command line in one (it holds plain values only).

    Raises:
        ValueError: the file is missing, damaged, or needs more than tensors and plain values to be read.
    """
    if not path.is_file():
        raise ValueError(f"weight file {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        remedy = "it was not read, for reading would run it. If you trust its source, load it there and save its tensors alone"
        raise ValueError(f"{path} is damaged or holds more than tensors and plain values; {remedy} ({_first_line(error)})") from None
    except (OSError, RuntimeError, EOFError, SafetensorError, zipfile.BadZipFile, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no weight file ({_first_line(error)}); download or copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return content


def metadata(path: Path) -> dict[str, Any]:
    """Return what `write` stored about the tensors of a .safetensors file; empty where another program wrote it."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing, damaged or no .safetensors file ({_first_line(error)})") from None
    return about


def write(path: Path, tensors: Tensors, about: Mapping[str, Any], *, framework: str | None = None) -> None:
    """Write a .safetensors file with `about` (JSON) in its metadata, under a temporary name until it is whole. Equal content gives equal bytes.

    framework: transformers looks for "pt" under "format"; two entries come in no particular order, so bytes may then differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = {ABOUT: json.dumps(about, sort_keys=True)}  # one entry: the format keeps several in no particular order
    text |= {"format": framework} if framework else {}
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata=text)
        temporary.chmod(0o644)  # safetensors makes it readable by its owner alone; a backbone is for sharing
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_strict(module: nn.Module, tensors: Tensors, *, drop: Collection[str] = (), absent: Collection[str] = (), where: str) -> None:
    """Fill a module: every tensor is used or named in `drop`, every parameter and buffer is filled or named in `absent`, every shape fits.

    Names ending in "." stand for all that begins with them. Raises ValueError with the names otherwise.
    """
    wanted = module.state_dict()
    unused = [name for name in tensors if name not in wanted and not named(name, drop)]
    missing = [name for name in wanted if name not in tensors and not named(name, absent)]
    misfit = [
        f"{name}: {tuple(tensors[name].shape)} does not fit {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    defects = [f"not used: {', '.join(unused)}"] * bool(unused) + [f"missing: {', '.join(missing)}"] * bool(missing) + misfit
    if defects:
        raise ValueError(f"{where} does not fit this {type(module).__name__}:\n  " + "\n  ".join(defects))
    module.load_state_dict({name: tensors[name] for name in wanted if name in tensors}, strict=False)


def weight_file(path: Path) -> Path:
    """Return the file that holds the weights: the path itself, or the weights in a directory of transformers' layout."""
    names = ("model.safetensors", "pytorch_model.bin")
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"directory {str(path)!r} holds neither {' nor '.join(names)} (files in several shards are not read)")


def sha256(path: Path) -> str:
    """Return the file's sha256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(name: str, names: Collection[str]) -> bool:
    """Return whether a name is among `names`, of which those that end in "." stand for all that begins with them."""
    return any(name == known or (known.endswith(".") and name.startswith(known)) for known in names)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
