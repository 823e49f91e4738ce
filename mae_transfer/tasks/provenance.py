"""Makes and extends the record of a run, from what its task states."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mae_transfer import results
from mae_transfer.config import Schema
from mae_transfer.data.sources import Fingerprint, fingerprint
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.state import LoopConfig, TrainState
from mae_transfer.record import (
    NAMED_CLASSES,
    UNKNOWN,
    DataSet,
    Record,
    Seconds,
    Sitting,
    Software,
    Weights,
    now,
    software,
)


class About(NamedTuple):
    """What a task states about its run."""

    task: str  # Record.task
    method: str  # Record.method
    dataset: str  # name of the data set in the config
    inputs: Mapping[str, Weights] = {}  # the weights that the run starts from, by role
    labels: bool = True  # whether the run learns from labels
    depends: tuple[str, ...] = ()  # Record.depends_on_device_batch, beside batch norm


def data_set(name: str, source: Any, print_: Fingerprint) -> DataSet:
    """Return the record's entry of a data set, given the source and the fingerprint of the whole set."""
    classes = tuple(source.classes)
    digest = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape")).hexdigest()[:16] if classes else None
    count = getattr(source, "object_count", None)
    return DataSet(
        name=name,
        kind=print_.kind,
        images=len(source),
        whole=print_.samples,
        classes=len(classes),
        class_names=tuple(map(_printable, classes)) if len(classes) <= NAMED_CLASSES else (),
        class_digest=digest,
        objects=count() if count is not None else None,
        files=print_.files,
        bytes=print_.bytes,
        fingerprint=print_.digest,
    )


def start_sitting(
    cfg: Any, about: About, state: TrainState, loop: LoopConfig, run: str, data: Mapping[str, DataSet]
) -> None:
    """Make the record of a run, or extend that of a continued run, and put it into the state. Every rank calls it."""
    devices = gather(results.device_name(state.dist.device), state.dist)
    if not state.dist.is_main:
        return
    sitting = Sitting(
        started_at=now(),
        first_step=state.step,
        software=software(),
        devices=devices,
        device_batch=loop.global_batch // (state.dist.world * loop.accumulate),
    )
    record = _record(cfg, about, run, data, epochs=cfg.epochs, batch=cfg.batch)
    record = record.model_copy(update={"depends_on_device_batch": dependence(state.model, about.depends)})
    before = state.record
    earlier: tuple[str, ...] = ()
    if before is not None:
        record = record.model_copy(update={"sittings": before.timed(state.seconds).sittings})
        earlier = before.earlier_configs
        if before.config_digest != record.config_digest:
            earlier = (*earlier, before.config_digest)
    elif state.step:
        record = record.model_copy(update={"sittings": (_unrecorded(state.seconds),)})
    sittings = (*record.sittings, sitting)
    state.record = record.model_copy(update={"sittings": sittings, "earlier_configs": earlier})


def _unrecorded(seconds: Seconds) -> Sitting:
    """Return the part of a run that an earlier version began and did not record."""
    unknown = Software(version=UNKNOWN, commit=None, dirty=False, packages={})
    return Sitting(
        started_at=UNKNOWN, first_step=0, software=unknown, devices=(UNKNOWN,), device_batch=0, seconds=seconds
    )


def evaluation_record(
    cfg: Any, about: About, sources: Mapping[str, Any], dist: Dist, *, run: str, batch: int, seconds: float
) -> Record | None:
    """Return the record of an evaluation without training; None on ranks other than 0. Every rank calls it."""
    devices = gather(results.device_name(dist.device), dist)
    data = {}
    if dist.is_main:
        data = {part: data_set(about.dataset, source, fingerprint(source)) for part, source in sources.items()}
    if dist.world > 1:  # the fingerprints of millions of files take longer than a device waits
        torch.distributed.barrier(group=dist.side)
    if not dist.is_main:
        return None
    sitting = Sitting(
        started_at=now(),
        first_step=0,
        software=software(),
        devices=devices,
        device_batch=cfg.run.evaluation_batch,
        seconds=Seconds(evaluate=seconds),
    )
    record = _record(cfg, about, run, data, epochs=0.0, batch=batch)
    return record.model_copy(update={"sittings": (sitting,)})


def of_checkpoint(path: str, payload: Mapping[str, Any], sha256: str | None) -> Weights:
    """Return the origin of a training state."""
    record = Record.model_validate_json(payload["record"]) if payload.get("record") else None
    name = record.method if record else Path(path).name
    return Weights(kind="run", name=name, sha256=sha256, record=record)


def name_of(work_dir: Path | None) -> str:
    """Return the name of a run in its record."""
    return work_dir.name if work_dir else "eval"


def dependence(model: nn.Module, own: tuple[str, ...]) -> tuple[str, ...]:
    """Return the reasons why the numbers depend on the images per device and forward pass."""
    model.train()
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    found = ("batch norm",) if any(norm.training for norm in norms) else ()
    return (*found, *own)


def gather(name: str, dist: Dist) -> tuple[str, ...]:
    """Return the names of all ranks, in the order of ranks."""
    if dist.world == 1:
        return (name,)
    names: list[Any] = [None] * dist.world
    torch.distributed.all_gather_object(names, name, group=dist.side)
    return tuple(names)


def _record(cfg: Schema, about: About, run: str, data: Mapping[str, DataSet], *, epochs: float, batch: int) -> Record:
    given: Any = cfg
    return Record(
        run=run,
        task=about.task,
        method=about.method,
        scale=given.scale,
        config_digest=cfg.digest(),
        recipe_digest=cfg.recipe_digest(),
        recipe=cfg.model_dump(mode="json", exclude={"run"}),
        seed=given.seed,
        epochs=epochs,
        batch=batch,
        data=dict(data),
        inputs=dict(about.inputs),
        labels=about.labels,
    )


def _printable(name: str) -> str:
    """Return a class name with lone surrogates replaced. A folder's name may contain them; JSON may not."""
    return name.encode("utf-8", "replace").decode("utf-8")
