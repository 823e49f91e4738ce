"""The shape of a run: how many nodes, GPUs and CPU cores it gets, at most as many as were asked for.

A run takes the largest number of processes that its batch can be split over. A run that does not train takes one GPU
unless its step says otherwise. Everything is checked before the first run starts.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mae_transfer.engine.state import micro_steps
from mae_transfer.suite.graph.plan import Node, Plan
from mae_transfer.tasks.config import TrainConfig

CORES = 2  # CPU cores of a process, beside its loader's workers
GIB, GIB_OF_A_WORKER = 8.0, 2.0  # main memory of a process and of one of its loader's workers


class Shape(NamedTuple):
    """What a run gets, or the most that it may get."""

    nodes: int = 1
    gpus: int = 1
    """GPUs per node. There is one process per GPU, or as many processes on CPUs."""
    cpus: int | None = None
    """CPU cores per node; None: no limit."""
    memory: float | None = None
    """Main memory per node in GiB; None: no limit."""
    hours: float | None = None
    """Estimated wall time of the run; None: unknown, or no limit."""

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus

    def __str__(self) -> str:
        """Return "4 x 8": nodes x GPUs."""
        return f"{self.nodes} x {self.gpus}"


def shapes_of(plan: Plan, asked: Shape, *, debug: bool = False) -> tuple[dict[str, Shape], list[str]]:
    """Return the shape of each run, and an error for each run that fits into no shape."""
    shapes: dict[str, Shape] = {}
    errors: list[str] = []
    for name, node in plan.items():
        try:
            shapes[name] = shape_of(node, asked, debug=debug)
        except ValueError as error:
            errors.append(str(error))
    return shapes, errors


def wall_hours(plan: Plan, shapes: Mapping[str, Shape], names: Collection[str], *, jobs: int | None) -> float:
    """Return the estimated hours until some runs of a plan have ended, if no other run takes time.

    Args:
        jobs: runs at a time; None: each run starts as soon as those that it needs have ended.
    """
    ends: dict[str, float] = {}
    free = [0.0] * (jobs or 0)
    for name, node in plan.items():
        ready = max((ends.get(need, 0.0) for need in (*node.needs, *node.points)), default=0.0)
        if name in names and jobs:
            ready = max(ready, heapq.heappop(free))
        ends[name] = ready + ((shapes[name].hours or 0.0) if name in names and name in shapes else 0.0)
        if name in names and jobs:
            heapq.heappush(free, ends[name])
    return max(ends.values(), default=0.0)


def shape_of(node: Node, asked: Shape, *, debug: bool = False, configs: Sequence[Any] = ()) -> Shape:
    """Return the shape of a run: the largest within `asked` and its step's limits that its batch can be split over.

    Several nodes are used as a whole or not at all.

    Args:
        asked: the most nodes, GPUs per node, cores and memory per node; `hours` is not read.
        debug: the run is started with --debug.
        configs: its `configs_of`, if they are at hand.
    Raises:
        ValueError: the batch cannot even be used by one process.
    """
    limits, configs = node.resources, configs or list(configs_of(node, debug=debug))
    trains = node.tool.trains and all(isinstance(cfg, TrainConfig) for cfg in configs)
    alone = None if trains else 1
    gpus = min(asked.gpus, limits.gpus or alone or asked.gpus)
    nodes = min(asked.nodes, limits.nodes or alone or asked.nodes)
    several = [(some, gpus) for some in range(nodes, 1, -1)]
    for shape in (*several, *((1, some) for some in range(gpus, 0, -1))):
        defects = [defect for cfg in configs if (defect := split_defect(cfg, shape[0] * shape[1]))]
        if not defects:
            break
    else:
        raise ValueError(f"run {node.name!r}: {defects[0]}")
    workers = max(cfg.run.workers for cfg in configs)
    cpus = limits.cpus or workers + CORES
    memory = limits.memory or GIB + workers * GIB_OF_A_WORKER
    return Shape(
        *shape,
        min(shape[1] * cpus, asked.cpus or shape[1] * cpus),
        min(shape[1] * memory, asked.memory or shape[1] * memory),
        None if node.hours is None else node.hours / (shape[0] * shape[1]),
    )


def configs_of(node: Node, *, debug: bool = False) -> Iterator[Any]:
    """Yield the resolved configs that a run may have: one, or one for each combination that its sweep may choose."""
    grid: Mapping[str, tuple[Any, ...]] = node.sweep.grid if node.sweep and node.points else {}
    for values in itertools.product(*grid.values()):
        yield node.load({**node.changes, **dict(zip(grid, values, strict=True))}, debug=debug)


def split_defect(cfg: Any, processes: int) -> str | None:
    """Return why a run with this config cannot have this number of processes; None: it can.

    The rules are those of the loop, of the order of the images, of mixup, and of batch norms without SyncBN.
    """
    if not isinstance(cfg, TrainConfig):
        return None
    wanted = cfg.run.device_batch if isinstance(cfg.run.device_batch, int) else None
    try:
        micro, _ = micro_steps(cfg.batch, device_batch=wanted, world=processes)
    except ValueError as error:
        return str(error)
    crops, protocol = getattr(cfg.data, "crops_per_image", 1), getattr(cfg, "protocol", None)
    if micro % crops:
        return f"{micro} crops per forward pass are not a multiple of data.crops_per_image = {crops}: change batch"
    if micro % 2 and (getattr(protocol, "mixup", 0) or getattr(protocol, "cutmix", 0)):
        return f"mixup and cutmix pair the images of a forward pass, which has {micro}: make batch even"
    if micro < (least := getattr(protocol, "least", 1)):
        return f"{micro} images per forward pass, but its batch norms need {least}: raise batch"
    return None
