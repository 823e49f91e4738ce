"""Table 2: what pretraining costs.

A column of hours or of images per second names its device, so that figures of different devices never mix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from mae_transfer.suite.match import backbone
from mae_transfer.suite.store.records import Record
from mae_transfer.suite.tables.places import ALONE, ROWS, Place, at, classified, pretrainings


def costs(records: Sequence[Record]) -> Iterator[Place]:
    """Yield hours, speed and work of each pretraining, and its fine-tuning if its row has a name of the paper's."""
    for record, _, _ in classified(records, "finetune"):
        if record.label in ROWS["2"]:
            yield at(record, str(record.label), "fine-tuning")
    runs = pretrainings(records)
    slowest = _slowest(runs)
    for record in runs:
        result, row, spent = record.result, _row(record, runs), hours(record)
        for device, some in spent.items():
            yield Place(record, row, f"hours on {device}", ALONE, some, "h")
        if speed := images_per_second(record):
            yield Place(record, row, f"images/s on {_devices(record)}", ALONE, speed, "images/s")
        most, name = slowest.get(_work(record), (0.0, row))
        if name != row and len(spent) == 1 and (own := next(iter(spent.values()))):
            yield Place(record, row, "speed-up over the slowest", ALONE, most / own, "x")
        flops = result.flops_per_image / 1e9 if result.flops_per_image else None
        yield Place(record, row, "tokens per image", ALONE, result.tokens_per_image, "tokens")
        yield Place(record, row, "GFLOPs per image", ALONE, flops, "GFLOPs")


def _row(record: Record, runs: Sequence[Record]) -> str:
    """Return the name of a pretraining, with its backbone if they differ."""
    name = record.label or record.result.pretrain
    several = len({one.result.backbone for one in runs}) > 1
    return f"{name}, {backbone(record.result)}" if several and name not in ROWS["2"] else name


def _slowest(runs: Sequence[Record]) -> dict[tuple[object, ...], tuple[float, str]]:
    """Return the mean hours and the row of the slowest pretraining, by what hours depend on besides the method."""
    spent: dict[tuple[object, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in runs:
        spent[_work(record)][_row(record, runs)].append(sum(hours(record).values()))
    return {work: max((fmean(some), row) for row, some in rows.items()) for work, rows in spent.items()}


def hours(record: Record) -> dict[str, float]:
    """Return the hours of training by device, summed over equal devices.

    Results of an earlier version also count evaluation, and say so.
    """
    result = record.result
    if result.record is not None:
        return result.record.device_hours()
    return {f"{result.device}, includes evaluation": result.wall_s * result.world_size / 3600}


def images_per_second(record: Record) -> float | None:
    """Return the images per second of training; None for an earlier version, whose time includes evaluation."""
    made = record.result.record
    return record.result.images_seen / made.train_seconds if made and made.train_seconds else None


def _devices(record: Record) -> str:
    """Return what a run trained on: "8 x NVIDIA H100"; sittings on other devices are named one after the other."""
    made = record.result.record
    sets = dict.fromkeys(tuple(sorted(sitting.devices)) for sitting in made.sittings) if made else {}
    return ", then ".join(" and ".join(_counted(devices)) for devices in sets)


def _counted(devices: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(devices):
        yield name if len(devices) == 1 else f"{devices.count(name)} x {name}"


def _work(record: Record) -> tuple[object, ...]:
    """Return what two runs must share for their hours to compare."""
    result = record.result
    return result.backbone, result.dataset, result.images_seen, tuple(hours(record)), result.world_size
