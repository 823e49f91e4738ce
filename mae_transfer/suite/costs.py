"""Table 2: what pretraining costs.

A column of hours or of images per second names its device, so that figures of different devices never mix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from mae_transfer.suite.names import backbone
from mae_transfer.suite.places import ALONE, ROWS, Place, at, classified, pretrainings
from mae_transfer.suite.records import Record


def costs(records: Sequence[Record]) -> Iterator[Place]:
    """Yield hours, speed and work of each pretraining, and its fine-tuning if its row has a name of the paper's."""
    for record, _, _ in classified(records, "finetune"):
        if record.label in ROWS["2"]:
            yield at(record, str(record.label), "fine-tuning")
    runs = pretrainings(records)
    several = len({record.result.backbone for record in runs}) > 1
    slowest: dict[tuple[object, ...], float] = defaultdict(float)
    for record in runs:
        slowest[_work(record)] = max([slowest[_work(record)], *hours(record).values()])
    for record in runs:
        result, name = record.result, record.label or record.result.pretrain
        row = f"{name}, {backbone(result)}" if several and name not in ROWS["2"] else name
        flops = result.flops_per_image / 1e9 if result.flops_per_image else None
        for device, spent in hours(record).items():
            yield Place(record, row, f"hours on {device}", ALONE, spent, "h")
        if speed := images_per_second(record):
            yield Place(record, row, f"images/s on {_devices(record)}", ALONE, speed, "images/s")
        if len(hours(record)) == 1 and slowest[_work(record)] > (own := next(iter(hours(record).values()))):
            yield Place(record, row, "speed-up over the slowest", ALONE, slowest[_work(record)] / own, "x")
        yield Place(record, row, "tokens per image", ALONE, result.tokens_per_image, "tokens")
        yield Place(record, row, "GFLOPs per image", ALONE, flops, "GFLOPs")


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
