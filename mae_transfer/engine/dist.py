"""Devices and processes: torchrun's environment, collective helpers, and the assembly of a model for training."""

from __future__ import annotations

import inspect
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch
import torch.distributed as td
from timm.utils.distributed import distribute_bn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.arithmetic import Matmul, float32_products
from mae_transfer.record import software
from mae_transfer.seeding import seed_all

T = TypeVar("T")
P = ParamSpec("P")
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
_LOG = logging.getLogger(__name__)
MOST_GRAPHS = 64  # graphs of one kind of block: train and eval mode, image sizes; torch's default is 8


@dataclass(frozen=True)
class Dist:
    """The device, rank and process group of this process.

    `side` is a gloo group on the host: communication through it never waits for a device.
    """

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
        """Whether batch norms synchronise their statistics over all processes; torch supports this on cuda only."""
        return self.world > 1 and self.device.type == "cuda"


def pick_device(name: DeviceName, *, local_rank: int = 0) -> torch.device:
    """Return the device; "auto" takes cuda, else mps, else cpu. Raise ValueError if the requested one is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, found in present.items() if found]
    kind = available[0] if name == "auto" else name
    if kind not in available:
        raise ValueError(
            f"device {name!r} is not available to this torch ({torch.__version__}); "
            f"set run.device to one of {available}"
        )
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


@contextmanager
def session(
    device: DeviceName = "auto", *, matmul: Matmul = "ieee", timeout_minutes: float | None = None
) -> Iterator[Dist]:
    """Join the processes that torchrun started (nccl on cuda, gloo elsewhere), and leave the group on exit.

    Without torchrun the session is one process. After an error on cuda the group is not left: nccl would wait for the
    other processes, which may wait for this one. The error is reported at once, and torchrun ends the others.

    Args:
        device: the device to use; see `pick_device`.
        matmul: how cuda computes float32 products and convolutions during the session.
        timeout_minutes: how long a process waits for the others before it gives up; None: torch's default.
    """
    rank, world, local = (
        int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    where = pick_device(device, local_rank=local)
    software()  # the record of a run names the code of its start, even if a commit follows while the data are opened
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise ValueError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} processes that are not connected but share one work "
            "dir: start one task per node and torchrun in it "
            "(srun --ntasks-per-node 1 torchrun --nnodes $SLURM_NNODES --nproc-per-node ...)"
        )
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        with float32_products(matmul):
            yield Dist(where)
        return
    patience = None if timeout_minutes is None else timedelta(minutes=timeout_minutes)
    cuda = where.type == "cuda"
    td.init_process_group("nccl" if cuda else "gloo", timeout=patience, device_id=where if cuda else None)
    try:
        with float32_products(matmul):
            yield Dist(
                where, rank, world, local, side=cast(td.ProcessGroup, td.new_group(backend="gloo", timeout=patience))
            )
    except BaseException:
        if not cuda:
            td.destroy_process_group()
        raise
    td.destroy_process_group()


def agree(find: Callable[[], T], dist: Dist) -> T:
    """Return what the function returns on the first rank; if it raises ValueError or OSError, every rank does."""
    if dist.world == 1:
        return find()
    outcome: list[Any] = _outcome(find) if dist.is_main else [None, None]
    td.broadcast_object_list(outcome, group=dist.side, group_src=0)
    if outcome[1] is not None:
        raise outcome[1]
    found: T = outcome[0]
    return found


def on_main(dist: Dist, action: Callable[[], None]) -> None:
    """Call the action on the first rank while the others wait (see `agree`)."""
    agree(action, dist)


def on_all(dist: Dist, action: Callable[[], None]) -> None:
    """Call the action on every rank; if it raises ValueError or OSError on one, every rank raises the first error."""
    if dist.world == 1:
        action()
        return
    errors: list[Any] = [None] * dist.world
    td.all_gather_object(errors, _outcome(action)[1], group=dist.side)
    for error in errors:
        if error is not None:
            raise error


def _outcome(find: Callable[[], object]) -> list[Any]:
    """Return the result and None, or None and the error, as one that can be sent to other ranks."""
    try:
        return [find(), None]
    except ValueError as error:
        return [None, ValueError(str(error))]
    except OSError as error:
        return [None, OSError(*error.args)]


def seed_step(seed: int, device: torch.device) -> None:
    """Seed `random`, `numpy`, and torch on the host and on this process's device.

    torch.manual_seed would seed every kind of device, which takes half a millisecond without CUDA.
    """
    seed_all(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def read_mean(values: Mapping[str, Tensor], dist: Dist) -> dict[str, float]:
    """Return the mean over the ranks of each 0-d device tensor, as host floats.

    All values share one all_reduce and one wait for the device. Every rank must pass the same names.
    """
    names = sorted(values)
    if not names:
        return {}
    wide = torch.float32 if dist.device.type == "mps" else torch.float64
    stacked = torch.stack([values[name].detach().to(wide) for name in names])
    if dist.world > 1:
        td.all_reduce(stacked)
    return dict(zip(names, (stacked / dist.world).tolist(), strict=True))


def gather_equal(part: Tensor, dist: Dist) -> Tensor:
    """Return the parts of all ranks, which have equal shapes, concatenated in the order of ranks. No gradient."""
    if dist.world == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(dist.world)]
    td.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts)


def mean_over_ranks(tensor: Tensor, dist: Dist) -> Tensor:
    """Return the mean of a tensor over the ranks, on the device. No gradient."""
    if dist.world == 1:
        return tensor
    total = tensor.detach().clone()
    td.all_reduce(total)
    return total / dist.world


def assemble(
    model: nn.Module, *, dist: Dist, compile: bool | None = False, checkpoint_activations: bool = False
) -> nn.Module:
    """Prepare a built and loaded model for training.

    The order matters: move to the device, SyncBN (for batch norms), activation checkpointing, compilation, DDP.
    Parameter names do not change (see `unwrap_model`). Each rank keeps its own buffers: DDP does not broadcast them.

    compile: None means on cuda only.

    Raises:
        ValueError: checkpoint_activations is set but the model has no `set_grad_checkpointing(bool)`.
    """
    model = model.to(dist.device)
    if dist.sync_bn:
        model = synchronized(model)
    elif dist.world > 1 and any(isinstance(module, BatchNorm) for module in model.modules()):
        _LOG.warning(
            "SyncBN needs several cuda processes; on %s x %d each process computes its own batch statistics",
            dist.device.type,
            dist.world,
        )
    if checkpoint_activations:
        switch = getattr(model, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(
                f"checkpoint_activations=True, but {type(model).__name__} has no set_grad_checkpointing(); "
                "set it to False"
            )
        switch(True)
    if compiles(compile, dist):
        compile_blocks(model)
    return _parallel(model, dist) if dist.world > 1 else model


def compiles(wanted: bool | None, dist: Dist) -> bool:
    """Return whether models are compiled; by default (None) on cuda only."""
    return dist.device.type == "cuda" if wanted is None else wanted


def compile_blocks(model: nn.Module) -> None:
    """Compile every member of a list named `blocks` in place, or model.compile() if there is none.

    Blocks of equal structure share their graphs, so compilation takes the same time for any depth. Whatever surrounds a
    block (activation checkpointing, DDP) is not compiled. If torch cannot compile, a warning names the reason once and
    the model runs eagerly.
    """
    import torch._dynamo as dynamo
    import torch._functorch.config as functorch

    dynamo.config.cache_size_limit = MOST_GRAPHS
    if hasattr(functorch, "force_non_lazy_backward_lowering"):  # not in torch 2.6
        functorch.force_non_lazy_backward_lowering = True  # a failure of the backward pass is seen in the forward pass
    lists = [part for owner in model.modules() for name, part in owner.named_children() if name == "blocks"]
    backend = _falling_back(dynamo.lookup_backend("inductor"))
    parts = [block for blocks in lists for block in blocks.children()] or [model]
    dynamo.config.optimize_ddp = not lists  # it would split graphs of blocks where gradient buckets end
    try:
        for part in parts:
            part.compile(backend=backend)
    except RuntimeError as error:  # torch does not compile on this platform, or for this version of Python
        for part in parts:
            part._compiled_call_impl = None
        _warn_of_compiler(error)


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function, compiled. If the compiler fails, a warning names the reason once, and it runs eagerly."""
    import torch._dynamo as dynamo

    try:
        return torch.compile(function, backend=_falling_back(dynamo.lookup_backend("inductor")))
    except RuntimeError as error:  # as in compile_blocks
        _warn_of_compiler(error)
        return function


def _falling_back(compiler: Callable[..., Any]) -> Callable[[torch.fx.GraphModule, list[Any]], Any]:
    """Return a compiler that leaves graphs as they are once it has failed."""
    from torch._dynamo.exc import RestartAnalysis, SkipFrame

    failed = False

    def compile(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        nonlocal failed
        try:
            return graph.forward if failed else compiler(graph, inputs)
        except (RestartAnalysis, SkipFrame):  # not failures: dynamo captures the graph again, or leaves the frame alone
            raise
        except Exception as error:
            failed = True
            _warn_of_compiler(getattr(error, "inner_exception", error))
            return graph.forward

    return compile


def _warn_of_compiler(cause: Exception) -> None:
    reason = f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
    _LOG.warning("run.compile: the model runs eagerly because the compiler failed: %s", reason)


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Run compiled parts of the model eagerly in the block: for those who look at its operations or count them."""
    compiled = {part: call for part in model.modules() if (call := part._compiled_call_impl) is not None}
    for part in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled.items():
            part._compiled_call_impl = call


@contextmanager
def keeping_activations(model: nn.Module) -> Iterator[None]:
    """Recompute no activations in the block, whatever run.checkpoint_activations says: for those who count operations.

    The names of the switches are those of this package and of timm.
    """
    names = ("checkpointing", "grad_checkpointing")
    switches = [(part, name) for part in model.modules() for name in names if getattr(part, name, False)]
    for part, name in switches:
        setattr(part, name, False)
    try:
        yield
    finally:
        for part, name in switches:
            setattr(part, name, True)


class SyncBatchNorm(nn.SyncBatchNorm):
    """A batch norm that synchronises its statistics, and accepts an empty batch on some ranks under autocast.

    torch sends the zeros of an empty batch in the input's type, but the sums of the other ranks are always float32. An
    empty input is therefore cast to float32. Other inputs are not cast, so the backward pass saves them as they are.
    """

    def __init__(self, norm: BatchNorm) -> None:
        """Take over the parameters, statistics and mode of a batch norm."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(self, name, tensor)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if input.numel() else input.float()).to(input.dtype)


def synchronized(model: nn.Module) -> nn.Module:
    """Return the model with its batch norms synchronised over all ranks; parameter names and values do not change."""
    if isinstance(model, BatchNorm):
        return SyncBatchNorm(model)
    for name, part in model.named_children():
        setattr(model, name, synchronized(part))
    return model


def average_statistics(model: nn.Module, dist: Dist) -> None:
    """Average the running statistics of batch norms over the ranks, so that all ranks have the same model."""
    if dist.world > 1:
        distribute_bn(model, dist.world, reduce=True)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside DDP; its parameter names are those of the checkpoints."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory so far, GiB.

    cuda: peak of the allocator; mps: present figure of the driver; cpu: peak resident set of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory(device: torch.device) -> None:
    """Free unused memory of a cuda device and measure its peak from now on; elsewhere this does nothing."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _parallel(model: nn.Module, dist: Dist) -> nn.Module:
    ids = [dist.local_rank] if dist.device.type == "cuda" else None
    parameters = inspect.signature(DistributedDataParallel).parameters
    if "forward_sync_buffers" in parameters:  # torch >= 2.13, where broadcast_buffers is deprecated
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=False)
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)
