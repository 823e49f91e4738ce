"""Devices and processes: thin calls around torchrun's environment, and the one order in which a model is dressed for training."""

from __future__ import annotations

import inspect
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.distributed as td
from timm.utils.distributed import distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.arithmetic import Matmul, float32_products
from mae_transfer.seeding import seed_all

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dist:
    """Who this process is. The side group is gloo on the host: what ranks tell each other through it never waits for a device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    side: td.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def sync_bn(self) -> bool:
        """Whether batch norms take their statistics over all processes: torch can on cuda alone."""
        return self.world > 1 and self.device.type == "cuda"


def pick_device(name: DeviceName, *, local_rank: int = 0) -> torch.device:
    """Return the device; "auto" takes cuda, else mps, else cpu. Raise ValueError where the one asked for is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(k for k, here in present.items() if here) if name == "auto" else name
    if not present.get(kind, False):
        raise ValueError(
            f"device {name!r} is not available to this torch ({torch.__version__}); set run.device to one of {[k for k in present if present[k]]}"
        )
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


@contextmanager
def session(device: DeviceName = "auto", *, matmul: Matmul = "ieee") -> Iterator[Dist]:
    """Join the processes that torchrun started (nccl on cuda, gloo elsewhere), and leave them cleanly; without torchrun: one process.

    matmul: how float32 products and convolutions are computed on cuda until then.
    """
    rank, world, local = (
        int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    where = pick_device(device, local_rank=local)
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise ValueError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} processes that do not know of each other, all for one work dir: start one "
            "task per node and torchrun in it (srun --ntasks-per-node 1 torchrun --nnodes $SLURM_NNODES --nproc-per-node ...)"
        )
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        with float32_products(matmul):
            yield Dist(where)
        return
    td.init_process_group("nccl" if where.type == "cuda" else "gloo", device_id=where if where.type == "cuda" else None)
    try:
        with float32_products(matmul):
            yield Dist(where, rank, world, local, side=cast(td.ProcessGroup, td.new_group(backend="gloo")))
    finally:
        td.destroy_process_group()


def on_main(dist: Dist, action: Callable[[], None]) -> None:
    """Call the action on the first rank alone, the others waiting; where it raises ValueError, every rank does."""
    outcome: list[str | None] = [None]
    if dist.is_main:
        try:
            action()
        except ValueError as error:
            if dist.world == 1:
                raise
            outcome = [str(error)]
    if dist.world > 1:
        td.broadcast_object_list(outcome, group=dist.side, group_src=0)
    if outcome[0] is not None:
        raise ValueError(outcome[0])


def seed_step(seed: int, device: torch.device) -> None:
    """Seed all that a training step may draw from: `random`, `numpy`, torch on the host and on this process's device.

    torch.manual_seed seeds every kind of device, and spends half a millisecond on it where CUDA is absent.
    """
    seed_all(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def read_mean(values: Mapping[str, Tensor], dist: Dist) -> dict[str, float]:
    """Return each 0-d device tensor's mean over the ranks as a host float: one all_reduce and one wait for the device, whatever the number of values.

    Every rank gives the same names.
    """
    names = sorted(values)
    if not names:
        return {}
    wide = torch.float32 if dist.device.type == "mps" else torch.float64
    stacked = torch.stack([values[name].detach().to(wide) for name in names])
    if dist.world > 1:
        td.all_reduce(stacked)
    return dict(zip(names, (stacked / dist.world).tolist(), strict=True))


def assemble(model: nn.Module, *, dist: Dist, compile: bool = False, checkpoint_activations: bool = False) -> nn.Module:
    """Dress a built and loaded model for training, in the one order that works; parameter names survive (see `bare`).

    To the device, SyncBN (where there are batch norms), activation checkpointing, module.compile(), DDP. Buffers are the rank's own: DDP does not
    broadcast them.

    Raises:
        ValueError: checkpoint_activations is asked of a model without `set_grad_checkpointing(bool)`.
    """
    model = model.to(dist.device)
    if dist.sync_bn:
        model = synchronized(model)
    elif dist.world > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        _LOG.warning(
            "SyncBN needs several cuda processes; on %s x %d batch statistics are each process's own",
            dist.device.type,
            dist.world,
        )
    if checkpoint_activations:
        switch = getattr(model, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(
                f"checkpoint_activations=True, but {type(model).__name__} has no set_grad_checkpointing(); turn the option off"
            )
        switch(True)
    if compile:
        model.compile()
    return _parallel(model, dist) if dist.world > 1 else model


class SyncBatchNorm(nn.SyncBatchNorm):
    """With an empty batch in float32: torch sends the zeros of such a rank in its input's type, and its fellows' sums are float32 whatever theirs is.

    Any other input stays as it is, which is what the backward pass keeps.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if input.numel() else input.float()).to(input.dtype)


def synchronized(model: nn.Module) -> nn.Module:
    """Return the model with every batch norm's statistics taken over all ranks; names and values stay."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    for module in converted.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = SyncBatchNorm
    return converted


def average_statistics(model: nn.Module, dist: Dist) -> None:
    """Average the running statistics of batch norms over the ranks, where each keeps its own: before each save and evaluation, so they agree."""
    if dist.world > 1:
        distribute_bn(model, dist.world, reduce=True)  # type: ignore[no-untyped-call]


def bare(model: nn.Module) -> nn.Module:
    """Return the module under DDP, whose parameter names are those of checkpoints."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far, GiB: the allocator's on cuda, the driver's present figure on mps, the process's resident set on cpu."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _parallel(model: nn.Module, dist: Dist) -> nn.Module:
    ids = [dist.local_rank] if dist.device.type == "cuda" else None
    if (
        "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    ):  # torch >= 2.13; its elder warns there
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=False)
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)
