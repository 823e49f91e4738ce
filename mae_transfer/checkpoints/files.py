"""Weight files: references to them, reads that run no code, atomic writes, strict loading into a model."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mae_transfer.core.normalize import Statistics, check_statistics
from mae_transfer.disk import at_home, atomic_write

Tensors = Mapping[str, Tensor]
ABOUT = "mae_transfer"  # key of our entry in the metadata of a .safetensors file
DIGEST = "content_sha256"  # key of the sha256 of the tensors and the rest of the metadata
STATISTICS = "statistics"  # key of the image statistics in our entry
HUB = ("model.safetensors", "pytorch_model.bin")  # weights in a folder of transformers or of timm on the hub
SHOWN = 8  # names that an error message lists
AGAIN = "download, copy or export it again"
STEM = "patch_embed.proj.weight"  # every ViT and Swin has it; its position shows the wrapper and the prefix
WRAPPERS = 3  # depth of nested dicts that are searched

DAMAGED = (
    OSError, RuntimeError, EOFError, SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, TypeError, KeyError,
    IndexError, AttributeError, MemoryError, OverflowError, AssertionError,
)  # fmt: skip


def split(reference: str | Path, prefixes: Collection[str]) -> tuple[str, str]:
    """Return prefix and path of a reference PREFIX:PATH; the prefix of a bare path is "".

    Only a known prefix counts, so a path may contain colons. A leading ~ becomes the home folder.

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


def read(path: Path) -> dict[str, Any]:
    """Return the content of a .safetensors, .npz or torch file, on the CPU. No code in the file is run.

    `argparse.Namespace` is allowed because the files of MAE's fine-tuning script store their command line in one. It
    holds plain values only.

    Raises:
        ValueError: the file is missing or damaged, holds more than tensors and plain values, or differs from what this
            suite wrote.
    """
    if not path.is_file():
        raise ValueError(f"weight file {str(path)!r} does not exist")
    try:
        content = _content(path)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from None
    except DAMAGED as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript archive, which holds a program; save its state dict instead"
            ) from None
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EIO):
            raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions and the disk") from None
        raise ValueError(f"{path} is damaged or not a weight file ({type(error).__name__}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors; save its state dict")
    if path.suffix == ".safetensors":
        _verify(path, content)
    return {str(name): value for name, value in content.items()}


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns about old pickles
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: str) -> str:
    """Return the message for a pickle that torch refused: it names a class, or it is damaged."""
    found = re.search(r"(?:GLOBAL|global:?|Unsupported class|Unsupported type) ([\w.]+\.\w+)", error)
    if not found:
        return (
            f"{path} is damaged or holds more than tensors and plain values "
            f"(its pickle cannot be read without running code); {AGAIN}"
        )
    keep = (
        f"c = torch.load({path.name!r}, map_location='cpu', weights_only=False); "
        "keep = lambda c: {k: keep(v) if isinstance(v, dict) else v for k, v in c.items() "
        "if isinstance(v, (dict, torch.Tensor))}; "
        "torch.save(keep(c if isinstance(c, dict) else c.state_dict()), 'tensors.pth')"
    )
    return (
        f"{path} is damaged or holds more than tensors and plain values: {found[1]}. It was not read, because reading "
        "it could run code. If you trust its source, save only its tensors: "
        f'python -c "import torch; {keep}" (docs/checkpoints.md, Safety)'
    )


def unwrap(
    content: Mapping[str, Any], *keys: str, where: Path, stem: str | Collection[str] = STEM
) -> dict[str, Tensor]:
    """Return the tensors of a file without the dicts around them.

    Args:
        keys: the keys under which the layout stores its tensors; they take precedence. Otherwise the only dict with a
            tensor named `stem` is taken: the file itself, or a dict within it under any key.
        stem: end of the name of a tensor that every file of the layout has; of several, one is enough.
    Raises:
        ValueError: no dict holds such a tensor, or several do; the message lists the expected keys and the file's keys.
    """
    stems = (stem,) if isinstance(stem, str) else tuple(stem)
    models = {path: tensors for path, tensors in _dicts(content) if any(name.endswith(stems) for name in tensors)}
    for key in keys:
        if inner := [path for path in models if path.split("/")[-1] == key]:
            return models[min(inner, key=len)]
    if "" in models or len(models) == 1:
        return models.get("") or next(iter(models.values()))
    if models:
        raise ValueError(
            f"{where} holds several models, under {', '.join(models)}; save the intended one in its own file"
        )
    names = [name for _, tensors in _dicts(content) for name in tensors]
    wanted = f"{' or '.join(map(repr, keys))} entry with" if keys else "tensor named"
    raise ValueError(
        f"{where} has no {wanted} ...{' or ...'.join(stems)}: its keys are {shorten(list(content)) or 'none'}, "
        f"its names {shorten(names) or 'none'}; name the file's layout"
    )


def _dicts(content: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (path of keys, tensors) of a dict and of the dicts within it."""
    yield path, {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if depth < WRAPPERS:
        for key, value in content.items():
            if isinstance(value, dict):
                yield from _dicts(value, f"{path}/{key}" if path else str(key), depth + 1)


def metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that `write` stored in a .safetensors file; empty if another program wrote the file.

    Those of a training state, step_*.pt, are what an export of it would have.
    """
    if path.suffix == ".pt":
        return _of_state(read(path))
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is missing, damaged or not a .safetensors file ({type(error).__name__}); {AGAIN}"
        ) from None
    if not isinstance(about, dict):
        raise ValueError(
            f"{path} has metadata that this package did not write (a {type(about).__name__} under {ABOUT!r}); {AGAIN}"
        )
    return about


def _of_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return pretraining, record and recipe of a training state."""
    if not isinstance(content.get("record"), str):
        return {}
    record = json.loads(content["record"])
    recipe, data = record["recipe"], record["data"]["train"]
    steps = data["images"] * (recipe["data"].get("crops_per_image") or 1) // record["batch"]
    if content["step"] < round(record["epochs"] * steps):
        record["reached"] = content["step"] / steps
        record["method"] += f", after {record['reached']:g} ep"
    return {"pretrain": record["method"], "recipe": recipe, "record": record}


def evaluated(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a training state that its run evaluates: averaged ones, if there are any and it does."""
    averaged = "ema" in state and state.get("evaluated") != "trained"
    found: dict[str, Tensor] = state["ema" if averaged else "model"]
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing or not JSON ({type(error).__name__}); write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object; write it again")
    return content


def write(path: Path, tensors: Tensors, about: Mapping[str, Any], *, framework: str | None = None) -> None:
    """Write a .safetensors file atomically, with `about` (JSON) in its metadata. Equal content gives equal bytes.

    The metadata also hold a digest of the tensors and `about`, which `read` verifies.

    framework: value of the metadata entry "format", where transformers expects "pt". The order of two entries is not
        fixed, so equal content may then give different bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**about, DIGEST: content_digest(stored, about)}
    text = {ABOUT: json.dumps(about, sort_keys=True)}  # one entry, because the order of several is not fixed
    text |= {"format": framework} if framework else {}
    with atomic_write(path) as temporary:
        try:
            save_file(stored, temporary, metadata=text)
        except SafetensorError as error:  # Rust's message: "... Os { code: 28, kind: StorageFull, message: ..."
            code = re.search(r"code: (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error)) from error
        temporary.chmod(0o644)  # safetensors makes the file readable by its owner only


def content_digest(tensors: Tensors, about: Mapping[str, Any]) -> str:
    """Return the sha256 of tensors (names, types, shapes, values) and of `about` without its digest entry."""
    plain = json.loads(json.dumps({key: value for key, value in about.items() if key != DIGEST}))  # as after reading
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _verify(path: Path, tensors: Tensors) -> None:
    """Raise ValueError if a file of this package does not match its digest; files without a digest pass."""
    about = metadata(path)
    if DIGEST in about and about[DIGEST] != content_digest(tensors, about):
        raise ValueError(
            f"{path} is damaged: its tensors or metadata have changed (their sha256 differs from the recorded one); "
            f"{AGAIN}"
        )


class RecordedStatistics(NamedTuple):
    """Image statistics, and whether they are recorded for these weights or are the default of their layout."""

    statistics: Statistics
    recorded: bool

    def entry(self) -> dict[str, Any]:
        """Return the metadata entry of an export."""
        mean, std = map(list, self.statistics)
        return {STATISTICS: {"mean": mean, "std": std, "recorded": self.recorded}}


def read_statistics(path: Path) -> RecordedStatistics | None:
    """Return the recorded statistics of a weight file, or None.

    Sources: the metadata of an export or a pretraining of this package, or timm's config.json beside a file of the hub.

    Raises:
        ValueError: the record does not hold valid image statistics.
    """
    about = metadata(path) if path.suffix == ".safetensors" else {}
    for key in (STATISTICS, "recipe"):
        part = about.get(key)
        if isinstance(part, Mapping) and part.get("mean") is not None:
            return RecordedStatistics(
                _statistics(part, where=f"metadata ({key}) of {path}"), part.get("recorded") is not False
            )
    beside = path.parent / "config.json"
    if path.name in HUB and beside.is_file():
        part = read_json(beside).get("pretrained_cfg")
        if isinstance(part, Mapping) and part.get("mean") is not None:
            return RecordedStatistics(_statistics(part, where=f"pretrained_cfg in {beside}"), True)
    return None


def _statistics(part: Mapping[str, Any], *, where: str) -> Statistics:
    mean, std = part.get("mean"), part.get("std")
    if not (isinstance(mean, list) and isinstance(std, list)):
        raise ValueError(f"{where}: mean {mean!r} and std {std!r} must be lists of numbers")
    return check_statistics(mean, std, where=where)


def load_strict(
    module: nn.Module, tensors: Tensors, *, drop: Collection[str] = (), absent: Collection[str] = (), where: str
) -> None:
    """Load tensors into a module; every tensor, parameter and buffer must match.

    Args:
        drop: names of tensors that may be left unused.
        absent: names of parameters and buffers that may be left unfilled. In both, a name ending in "." is a prefix.
        where: the file, for error messages.
    Raises:
        ValueError: a tensor is unused, a parameter is missing, a shape or type does not fit, or a value is not finite.
    """
    wanted = module.state_dict()
    unused = [name for name in tensors if name not in wanted and not matches(name, drop)]
    missing = [name for name in wanted if name not in tensors and not matches(name, absent)]
    misfit = [
        f"{name}: {tuple(tensors[name].shape)} does not fit {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    mistyped = [
        f"{name}: {tensors[name].dtype} where {wanted[name].dtype} is expected"
        for name in wanted
        if name in tensors and tensors[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    defects = [f"not used: {shorten(unused)}"] * bool(unused) + [f"missing: {shorten(missing)}"] * bool(missing)
    defects += [*misfit[:SHOWN], *mistyped[:SHOWN]]
    if defects:
        raise ValueError(f"{where} does not fit this {type(module).__name__}:\n  " + "\n  ".join(defects))
    used = {name: tensors[name].to(wanted[name].dtype) for name in wanted if name in tensors}
    check_finite(used, where=where)
    module.load_state_dict(used, strict=False)


def check_finite(tensors: Tensors, *, where: str | Path) -> None:
    """Raise ValueError if a tensor holds NaN or infinity; the message names the tensors."""
    broken = [f"{name} ({_count_broken(tensor)})" for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        cause = "its training diverged or the file is damaged; use another"
        raise ValueError(f"{where} holds values that are not finite, in {shorten(broken)}: {cause}")


def _count_broken(tensor: Tensor) -> str:
    """Return the numbers of NaN and infinite values, "3 NaN, 1 infinite of 768"."""
    counts = {"NaN": int(tensor.isnan().sum()), "infinite": int(tensor.isinf().sum())}
    return f"{', '.join(f'{count} {kind}' for kind, count in counts.items() if count)} of {tensor.numel()}"


def shorten(names: Collection[str]) -> str:
    """Return the first names as text, and their total number if there are more."""
    first = list(names)[:SHOWN]
    return ", ".join(first) + (f" ... ({len(names)} in all)" if len(names) > len(first) else "")


def weight_file(path: Path) -> Path:
    """Return the weight file: the path itself, or the weights in a directory of transformers' layout."""
    if not path.is_dir():
        return path
    for name in HUB:
        if (path / name).is_file():
            return path / name
    raise ValueError(
        f"directory {str(path)!r} holds neither {' nor '.join(HUB)} (sharded files are not supported: save one file)"
    )


def sha256(path: Path) -> str:
    """Return the file's sha256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without(tensors: Tensors, names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors that are not in `names` (see `matches`)."""
    return {name: tensor for name, tensor in tensors.items() if not matches(name, names)}


def matches(name: str, names: Collection[str]) -> bool:
    """Return whether a name is in `names`; an entry that ends in "." matches as a prefix."""
    return any(name == known or (known.endswith(".") and name.startswith(known)) for known in names)
