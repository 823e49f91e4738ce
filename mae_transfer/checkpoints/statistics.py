"""What the images of weights were normalised with, where a file or what lies beside it says so; it travels with every export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.checkpoints.files import metadata
from mae_transfer.core.normalize import Statistics, checked

KEY = "statistics"  # of a file's metadata
HUB = ("model.safetensors", "pytorch_model.bin")  # beside these timm's config.json speaks of the same weights
TOLERANCE = 5e-3  # between two roundings of the same mean or standard deviation


class Said(NamedTuple):
    """Statistics, and whether they are known to be the weights' own or are their layout's default."""

    statistics: Statistics
    recorded: bool


def entry(said: Said) -> dict[str, Any]:
    """Return what an export writes into its metadata."""
    return {KEY: {"mean": list(said.statistics.mean), "std": list(said.statistics.std), "recorded": said.recorded}}


def stored(path: Path) -> Said | None:
    """Return what a weight file says: an export of this suite, its own pretraining, or timm's config.json beside a file of the hub; else None.

    Raises:
        ValueError: what it says are no statistics of images.
    """
    about = metadata(path) if path.suffix == ".safetensors" else {}
    for key in (KEY, "recipe"):
        part = about.get(key)
        if isinstance(part, Mapping) and part.get("mean") is not None:
            return Said(_statistics(part, where=f"metadata ({key}) of {path}"), part.get("recorded") is not False)
    beside = path.parent / "config.json"
    if path.name in HUB and beside.is_file():
        part = read_json(beside).get("pretrained_cfg")
        if isinstance(part, Mapping) and part.get("mean") is not None:
            return Said(_statistics(part, where=f"pretrained_cfg in {beside}"), True)
    return None


def agreed(default: Said, said: Said | None, *, where: str) -> Said:
    """Return what holds of a file: what is recorded before a default. ValueError where two records contradict each other."""
    if said is None:
        return default
    if default.recorded and not same(default.statistics, said.statistics):
        if said.recorded:
            raise ValueError(
                f"{where}: two records of its statistics contradict each other, {text(default.statistics)} and {text(said.statistics)}; correct one"
            )
        return default
    return said


def same(one: Statistics, other: Statistics) -> bool:
    """Return whether two statistics are equal but for rounding."""
    pairs = list(zip(one.mean + one.std, other.mean + other.std, strict=False))
    return len(one.mean) == len(other.mean) and all(abs(a - b) <= TOLERANCE for a, b in pairs)


def text(statistics: Statistics) -> str:
    """Return statistics as a sentence holds them."""
    mean, std = (tuple(round(value, 5) for value in part) for part in statistics)
    return f"mean {mean} and std {std}"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing or no JSON ({type(error).__name__}); write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object of JSON")
    return content


def _statistics(part: Mapping[str, Any], *, where: str) -> Statistics:
    mean, std = part.get("mean"), part.get("std")
    if not (isinstance(mean, list) and isinstance(std, list)):
        raise ValueError(f"{where}: mean {mean!r} and std {std!r} must be lists of numbers")
    return checked(mean, std, where=where)
