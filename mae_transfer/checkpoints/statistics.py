"""Image statistics (mean and standard deviation) that belong to weights; every export records them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.checkpoints.files import metadata
from mae_transfer.core.normalize import Statistics, checked

KEY = "statistics"  # key in a file's metadata
HUB = ("model.safetensors", "pytorch_model.bin")  # a config.json of timm beside these files describes their weights
TOLERANCE = 5e-3  # largest difference of two roundings of the same value


class Said(NamedTuple):
    """Statistics, and whether they are recorded for these weights or are the default of their layout."""

    statistics: Statistics
    recorded: bool


def entry(known: Said) -> dict[str, Any]:
    """Return the metadata entry of an export."""
    return {KEY: {"mean": list(known.statistics.mean), "std": list(known.statistics.std), "recorded": known.recorded}}


def stored(path: Path) -> Said | None:
    """Return the recorded statistics of a weight file, or None.

    Sources: the metadata of an export or a pretraining of this suite, or timm's config.json beside a file of the hub.

    Raises:
        ValueError: the record does not hold valid image statistics.
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


def agreed(default: Said, stored: Said | None, *, where: str) -> Said:
    """Return the statistics of a file; recorded ones take precedence over a default.

    Raises:
        ValueError: two records contradict each other.
    """
    if stored is None:
        return default
    if default.recorded and not same(default.statistics, stored.statistics):
        if stored.recorded:
            raise ValueError(
                f"{where}: two records of its statistics contradict each other, {text(default.statistics)} and "
                f"{text(stored.statistics)}; correct one"
            )
        return default
    return stored


def same(one: Statistics, other: Statistics) -> bool:
    """Return whether two statistics are equal up to rounding."""
    pairs = list(zip(one.mean + one.std, other.mean + other.std, strict=False))
    return len(one.mean) == len(other.mean) and all(abs(a - b) <= TOLERANCE for a, b in pairs)


def text(statistics: Statistics) -> str:
    """Return statistics as text for a sentence."""
    mean, std = (tuple(round(value, 5) for value in part) for part in statistics)
    return f"mean {mean} and std {std}"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing or not JSON ({type(error).__name__}); write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object; write it again")
    return content


def _statistics(part: Mapping[str, Any], *, where: str) -> Statistics:
    mean, std = part.get("mean"), part.get("std")
    if not (isinstance(mean, list) and isinstance(std, list)):
        raise ValueError(f"{where}: mean {mean!r} and std {std!r} must be lists of numbers")
    return checked(mean, std, where=where)
