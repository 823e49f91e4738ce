"""The training state of a run, and the options of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mae_transfer.bounds import Between, Count, FewOrNone, Positive, Seed, Whole
from mae_transfer.config import Schema
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import DeviceName, Dist, compile_blocks, compiles, unwrap_model
from mae_transfer.record import Record, Seconds

Precision = Literal["float32", "bfloat16", "float16"]
AUTOCAST: dict[Precision, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RunConfig(Schema):
    """How a run is executed. The config's digest leaves it out.

    Numbers change by rounding, or by other random draws of the same kind: `compile` and `device_batch` change which
    samples drop path drops. The record names what else depends on images per device: batch norm, mixup, skip_dropped.
    """

    device: DeviceName = "auto"
    """cuda, mps or cpu; "auto" takes the first that is available."""
    device_batch: Count | Literal["auto"] | None = None
    """Images per device and forward pass; None: the device's full share of the global batch. A smaller value saves
    memory: gradient accumulation makes up the rest. "auto": the largest that fits, found by trials before the run and
    recorded in the work dir's config.py."""
    evaluation_batch: Count = 64
    """Images per device and forward pass in an evaluation."""
    timeout_minutes: Positive | None = None
    """How long a process waits for the others before it stops with an error. None: torch's default, 10 minutes between
    GPUs (NCCL) and 30 elsewhere (gloo). Raise it if one process lists a large data set on a slow disk meanwhile."""
    workers: FewOrNone = 2
    """Data-loading processes per device; 0 loads in the training process. Each evaluation starts its own."""
    prefetch: Count = 2
    """Batches that each of them prepares in advance. More of them smooth a disk of uneven speed, in shared memory."""
    start_method: Literal["fork", "forkserver", "spawn"] | None = None
    """How they start. "forkserver" and "spawn" share no state with a process that uses CUDA, and take seconds longer
    (in a suite, forkserver can leave processes behind after SIGTERM). None: Python's default."""
    augment_on: Literal["worker", "device"] = "worker"
    """Where views for joint embedding are flipped and get their colours, and where classification applies RandAugment.
    "device": workers draw the same changes, but only decode, crop and resize: 2.5 times the images per core in joint
    embedding, 1.5 times in classification. It does not pay on CPU. Values may differ by one grey level."""
    decode_on: Literal["worker", "device"] = "worker"
    """Where pretraining and classification decode JPEGs. "device": workers read files and draw crops; the main process
    has them decoded by nvImageCodec and resizes them there, on a CUDA device by its decoder, during the step before.
    Needs one crop per image without jitter. It does not pay on CPU. Nothing was measured on a GPU; its decoder may
    round in another way."""
    compile: bool | None = None
    """Compile each transformer block in training (torch.compile). It takes time at the start (a minute for ViT-B on two
    CPU cores, not measured on a GPU) and is meant for GPUs: on a CPU it makes float32 no faster. A model without blocks
    is compiled as a whole. Evaluations alone (--eval, frozen backbones) are never compiled. None: on cuda only, unless
    detection takes images of many sizes (data.square = None). If torch cannot compile the model, the run continues
    without and says why. From the same seed, a compiled block drops other samples (drop path) than an eager one."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    position_bias: Literal["tensor", "channels", "flex"] = "tensor"
    """How relative positions reach the logits of attention. "tensor": as a bias per pair of patches. "channels":
    decomposed ones (ViTDet, SAM) as further channels of queries and keys; at 1024 px and in bf16, a global block of
    ViT-B keeps 0.35 GB less per image. "flex": decomposed ones and tables (BEiT) by FlexAttention, within the kernel;
    where that needs what is missing (cuda, `compile`, torch 2.9), a warning says so and "tensor" is used. It sums
    gradients of positions in no fixed order."""
    log_every: Count = 20
    """Steps between two log lines. The host waits for the device only at these steps."""
    save_every: Count | None = None
    """Steps between two checkpoints; None: only `save_minutes` counts."""
    save_minutes: Positive | None = 15.0
    """Minutes between two checkpoints; None: only `save_every` counts. The end of a run and SIGTERM always save."""
    keep_last: Count = 2
    """Number of newest checkpoints to keep."""
    keep_every: Count | None = None
    """Also keep each checkpoint whose step is a multiple of this; None: no others."""
    profile: Count | None = None
    """Profile three steps after this one: work dir/profile/ gets a trace for ui.perfetto.dev and a table of the most
    expensive operations. None: no profile."""
    features: str | None = None
    """Folder in which evaluations of frozen backbones keep features, so that several of them share one pass over a data
    set. Linear probes without augmentation use it, too. None: keep nothing."""
    progress: bool = True
    """Show a progress bar on a terminal; elsewhere print a line per log step."""
    wandb: bool = False
    """Also log to Weights & Biases, which must be installed."""
    estimate: bool = False
    """Time some steps, print the run's estimated time, memory and disk use, and write nothing (--estimate)."""


class LoopConfig(Schema):
    """Length, batch and precision of the training. The task fills it from its own config."""

    steps: Whole
    """Optimizer steps of the whole run."""
    steps_per_epoch: Count
    """Optimizer steps per epoch; converts steps into the epochs that are logged."""
    global_batch: Count
    """Images per optimizer step, over all devices and micro-steps."""
    accumulate: Count = 1
    """Micro-steps per optimizer step on each device (see `micro_steps`)."""
    precision: Precision = "float32"
    """Autocast type of the forward pass. float16 scales the loss (GradScaler); float32 keeps the model's own type."""
    clip_norm: Positive | None = None
    """Largest total gradient norm, l2; None: no clipping."""
    clip_each: bool = False
    """Whether `clip_norm` bounds the norm of each tensor instead of the total."""
    ema_decay: Between | None = None
    """Decay per step of the averaged weights, at first if it moves (Rates); None: no average."""
    evaluated: Literal["average", "trained"] = "average"
    """The weights to evaluate and export, if there is an average."""
    seed: Seed = 0
    """Seeds every random draw of the training step."""
    evaluate_every: Count | None = None
    """Steps between two evaluations; None: only at the end."""
    monitor_every: Count | None = None
    """Steps between two measurements of the monitor; None: none."""
    flops_per_image: Count | None = None
    """Floating-point operations of a training step, per image; if set, log lines have the share of the device's
    measured matmul peak that the run reaches ("mfu"). None: not counted, as in joint embedding, detection, tokenizers
    and on kept features."""
    run: RunConfig = RunConfig()
    """Options of the execution."""


@dataclass
class TrainState:
    """Everything that a checkpoint holds. Create it with `create`."""

    model: nn.Module  # assembled: may be compiled and wrapped in DDP
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    dist: Dist
    held: nn.Module | None = None  # of the task: what it keeps besides the model, such as a queue
    evaluates: Literal["average", "trained"] = "average"
    digest: str = ""  # of the files that the run refers to; a checkpoint with another digest is refused
    extra: dict[str, Any] = field(default_factory=dict)  # of the task; plain types and tensors
    step: int = 0  # completed optimizer steps
    images_seen: int = 0
    seconds: Seconds = field(default_factory=Seconds)  # summed over all sittings
    record: Record | None = None  # how the run came to be; the engine only carries it
    stopped: bool = False  # a signal stopped the run before its last step
    metrics: dict[str, float] = field(default_factory=dict)  # results of the last evaluation

    @classmethod
    def create(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        cfg: LoopConfig,
        *,
        dist: Dist,
        held: nn.Module | None = None,
        digest: str = "",
        extra: dict[str, Any] | None = None,
    ) -> TrainState:
        """Return the state before step 0, from an assembled model and an optimizer over its parameters."""
        scaler = torch.amp.GradScaler(dist.device.type, enabled=cfg.precision == "float16")
        ema = ModelEmaV3(unwrap_model(model), decay=cfg.ema_decay) if cfg.ema_decay is not None else None
        if ema is not None and compiles(cfg.run.compile, dist):  # a copy of a module is not compiled
            compile_blocks(ema.module)
        return cls(model, optimizer, scaler, ema, dist, held, cfg.evaluated, digest, dict(extra or {}))

    @property
    def bare(self) -> nn.Module:
        """The unwrapped model; its parameter names are those of the checkpoints."""
        return unwrap_model(self.model)

    @property
    def averaged(self) -> nn.Module | None:
        """The model with averaged weights, if there is one. It is in eval mode."""
        return None if self.ema is None else self.ema.module

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and export: the one with averaged weights, if there is one and it is wanted."""
        return self.bare if self.averaged is None or self.evaluates == "trained" else self.averaged

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint's payload: plain types and tensors only."""
        parts: dict[str, Any] = {"model": self.bare, "optimizer": self.optimizer, "scaler": self.scaler}
        parts |= {name: part for name, part in {"ema": self.averaged, "held": self.held}.items() if part is not None}
        numbers = {
            "step": self.step,
            "images_seen": self.images_seen,
            "seconds": self.seconds.model_dump(),
            "record": self.record.timed(self.seconds).model_dump_json() if self.record is not None else None,
            "digest": self.digest,
            "extra": self.extra,
            "evaluated": self.evaluates,
        }
        return {name: part.state_dict() for name, part in parts.items()} | numbers

    def load_state_dict(self, payload: Mapping[str, Any]) -> None:
        """Load a payload. Raise ValueError if it belongs to another config or another kind of run."""
        if payload["digest"] != self.digest:
            raise ValueError(
                f"the checkpoint was made with {payload['digest']!r}, this run has {self.digest!r}: "
                "use another work dir, or the same files"
            )
        if ("ema" in payload) != (self.ema is not None):
            stored, expected = ("averaged", "none") if "ema" in payload else ("no averaged", "some")
            raise ValueError(f"the checkpoint has {stored} weights but this run expects {expected}: change ema_decay")
        if self.held is not None:
            _load(self.held, payload.get("held", {}), "objective (set it as when the run began)")
        _load(self.bare, payload["model"], "model (another architecture or objective, or other classes in the data?)")
        self.optimizer.load_state_dict(payload["optimizer"])
        self.scaler.load_state_dict(payload["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(payload["ema"])
        self.step, self.images_seen = payload["step"], payload["images_seen"]
        # earlier versions counted all seconds together and kept no record
        self.seconds = Seconds.model_validate(payload.get("seconds") or {"train": payload.get("wall_s", 0.0)})
        self.record = Record.model_validate_json(payload["record"]) if payload.get("record") else None
        self.extra = dict(payload["extra"])

    def tensors(self) -> list[Tensor]:
        """Return every floating-point tensor that a checkpoint would hold."""
        modules = [module.state_dict() for module in (self.bare, self.averaged, self.held) if module is not None]
        parts = [*modules, *self.optimizer.state.values()]
        values = [value for part in parts for value in part.values()]
        return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _load(module: nn.Module, tensors: Mapping[str, Any], what: str) -> None:
    """Load tensors into a module; ValueError names the first that do not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        text = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"the checkpoint does not fit this run's {what}: {text}") from None


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass of this precision runs."""
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def check_precision(
    precision: Precision, device: torch.device, *, remedy: str = "set precision='float16' or 'float32'"
) -> None:
    """Raise ValueError if the precision is bfloat16 and the GPU has no such arithmetic; torch would emulate it."""
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"precision bfloat16: {torch.cuda.get_device_name(device)} has no bfloat16: {remedy}")


def resume(state: TrainState, folder: Path) -> list[str]:
    """Load the newest readable checkpoint of `folder` into the state, on every rank; return notices for the user.

    Raises:
        ValueError: no checkpoint can be read, it belongs to another config, or the ranks found different steps.
    """
    loaded = checkpoint.load_newest(folder)
    if loaded is not None:
        state.load_state_dict(loaded.payload)
        averaged = state.ema.module.state_dict() if state.ema is not None else {}
        weights = state.bare.state_dict() | {f"ema.{name}": tensor for name, tensor in averaged.items()}
        if broken := [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]:
            raise ValueError(
                f"{loaded.path} holds values that are not finite, in {', '.join(broken[:8])}; "
                "delete it, then --resume loads the previous checkpoint"
            )
    if state.dist.world > 1:
        steps: list[Any] = [None] * state.dist.world
        torch.distributed.all_gather_object(steps, state.step, group=state.dist.side)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the ranks found checkpoints of different steps {steps} in {folder}: "
                "put the work dir on a file system that all nodes share"
            )
    if loaded is None:
        return [f"no checkpoint in {folder}: starting at step 0"]
    return [*loaded.notices, f"continuing at step {state.step} from {loaded.path}"]


def micro_steps(global_batch: int, *, device_batch: int | None, world: int) -> tuple[int, int]:
    """Return (images per device and micro-step, micro-steps) that make up the global batch exactly.

    Raises:
        ValueError: the batch cannot be split this way.
    """
    share, rest = divmod(global_batch, world)
    micro = min(device_batch or share, share)
    if rest or not share:
        raise ValueError(
            f"batch = {global_batch} cannot be split over {world} processes: "
            f"set it to a multiple of {world}, or start another number of processes"
        )
    if share % micro:
        raise ValueError(
            f"batch = {global_batch} is not a multiple of {world} device(s) x run.device_batch = {device_batch}: "
            "change run.device_batch"
        )
    return micro, share // micro
