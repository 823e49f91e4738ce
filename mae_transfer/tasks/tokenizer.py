"""Training a discrete VAE on one's own images: images in, a tokenizer and pictures out (DALL-E, arXiv 2102.12092, stage one).

Legend: B batch, S side of an image, P codes, h x w cells.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer import checkpoints, results
from mae_transfer.bounds import Count, Epochs, Probability, ShareOfRun, Weight
from mae_transfer.checkpoints.tokenizers import export_tokenizer
from mae_transfer.config import Schema
from mae_transfer.core.patches import sides
from mae_transfer.data import (
    Crops,
    DataConfig,
    Order,
    Share,
    Source,
    Spread,
    Unreadable,
    batches,
    evaluation_views,
    open_sources,
    training_views,
)
from mae_transfer.draw.reconstructions import save_sheet
from mae_transfer.engine.dist import Dist, assemble, read_mean, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import build_optimizer, param_groups, peak_lr, spared
from mae_transfer.engine.schedule import in_steps
from mae_transfer.engine.state import LoopConfig, TrainState
from mae_transfer.interfaces import Batch
from mae_transfer.models.dvae import DVAE, DVAEConfig, DVAETokenizer, kl_to_uniform, map_pixels, reconstruction_loss
from mae_transfer.seeding import fold
from mae_transfer.tasks.common import ImageConfig, Job, facts, fit, pass_over, plan, record_of, unread
from mae_transfer.tasks.provenance import About
from mae_transfer.tasks.workdir import WorkDir

log = logging.getLogger(__name__)
TOKENIZER = "tokenizer.safetensors"


class Anneal(Schema):
    """A value that moves along half a cosine and then stays."""

    start: Weight
    """Value at step 0."""
    end: Weight
    """Value from `epochs` on."""
    epochs: Epochs | ShareOfRun
    """How long it moves: epochs, fractions count, or a share of the run ("60%"), which follows `epochs`."""

    def at(self, step: int, *, steps_per_epoch: int, steps: int) -> float:
        """Return the value at a 0-based step of a run of `steps`; ValueError where the run ends before the value does."""
        length = in_steps(self.epochs, steps_per_epoch, steps=steps)
        if length > steps:
            raise ValueError(
                f"epochs={self.epochs} of tau or kl is {length:g} steps, but the run has {steps}: shorten it, give a share of "
                'the run (tau.epochs="60%"), or train longer'
            )
        progress = min(step / length, 1.0) if length else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class TokenizerConfig(ImageConfig):
    """A run of the discrete VAE; it is evaluated by what hard codes rebuild of validation images."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 8},
        "data.val": {"name": "shapes", "length": 2, "seed": 1},
        "data.size": 32,
        "data.crops_per_image": 1,
        "model.codes": 16,
        "model.width": 8,
        "model.decoder_input": 8,
        "model.blocks": 1,
        "tau.epochs": 1,
        "kl.epochs": 1,
        "schedule.warmup_epochs": 0.5,
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    data: DataConfig = DataConfig()
    """Images and their augmentation; `size` is what the autoencoder is trained at, any multiple of its stride serves later."""
    model: DVAEConfig = DVAEConfig()
    """Codebook and network."""
    tau: Anneal = Anneal(start=1.0, end=1 / 16, epochs=60.0)
    """Temperature of the Gumbel-softmax."""
    kl: Anneal = Anneal(start=0.0, end=6.6, epochs=2.0)
    """Weight of the KL to the uniform distribution over codes, summed over cells, against the reconstruction, summed over pixels."""
    evaluate_images: Count = 2048
    """Images to evaluate on, spread evenly over the validation set (over the training set where there is none)."""
    pictures: Count = 8
    """Images to draw."""
    least_use: Probability = 0.1
    """Share of the codebook in use below which the run warns that it has collapsed."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if any(side % self.model.stride for side in sides(self.data.size)):
            raise ValueError(
                f"data.size = {self.data.size} is not a multiple of the tokenizer's stride {self.model.stride}"
            )
        if self.optim.layer_decay:
            raise ValueError(
                f"optim.layer_decay = {self.optim.layer_decay}: the autoencoder has one rate for all layers; leave it out"
            )
        if len(self.mean) != 3:
            raise ValueError(f"the autoencoder takes 3 channels, mean has {len(self.mean)} values")
        return self

    def method(self) -> str:
        """Return what a table calls this tokenizer: "dVAE 512/8, 20 ep"."""
        return f"dVAE {self.model.codes}/{self.model.stride}, {self.epochs:g} ep"


class Parts(NamedTuple):
    """What a config opens that is no training state."""

    train: Source
    held_out: Source
    split: str  # where the held-out images come from: "val", or "train" where there is no such set


def run(cfg: TokenizerConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Train, evaluate, draw, and write `work_dir`/tokenizer.safetensors; return the results (rank 0, finished runs only).

    Raises:
        ValueError: config, data and work dir do not fit together; before training starts.
        NonFiniteLoss: names the step and its samples.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        train_set, val_set = open_sources(cfg.data)
        split = "train" if val_set is None else "val"
        parts = Parts(train_set, Spread(train_set if val_set is None else val_set, cfg.evaluate_images), split)
        job = Job(
            order=Order(
                images=len(train_set), batch=cfg.batch, seed=cfg.seed, crops_per_image=cfg.data.crops_per_image
            ),
            build=partial(build_state, cfg, dist=dist),
            feed=partial(feed, cfg, parts, dist=dist),
            step=partial(step_fn, cfg),
            evaluate=partial(evaluate, cfg, parts),
            headline=partial(headline, cfg, parts, dist=dist),
            finish=partial(finish, cfg, parts),
            sources={"train": parts.train, parts.split: parts.held_out},
            about=About("tokenizer", cfg.method(), cfg.data.name, labels=False),
            export=(TOKENIZER, partial(export, cfg)),
        )
        return fit(cfg, work_dir, job, dist=dist, resume=resume)


def step_fn(
    cfg: TokenizerConfig, loop: LoopConfig
) -> Callable[[nn.Module, Batch, Step], tuple[Tensor, dict[str, Tensor]]]:
    """Return the training step: the negative evidence bound per pixel value, as DALL-E scales it (appendix A.2)."""
    cells_per_value, length = (
        1 / (3 * cfg.model.stride**2),
        {"steps_per_epoch": loop.steps_per_epoch, "steps": loop.steps},
    )
    for moving in (cfg.tau, cfg.kl):
        moving.at(0, **length)  # one that the run is too short for is an error now

    def step(model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = map_pixels(batch.image)
        tau = torch.full((), cfg.tau.at(at.number, **length), device=pixels.device)
        output = model(pixels, tau)
        rebuilt, kl = reconstruction_loss(output.pixels, pixels, cfg.model.loss), kl_to_uniform(output.logits)
        weight = cfg.kl.at(at.number, **length) * cells_per_value
        metrics = (
            {"reconstruction": rebuilt.detach(), "kl": kl.detach(), **usage(output.logits.detach())} if at.logs else {}
        )
        return rebuilt + weight * kl, metrics

    return step


def usage(logits: Tensor) -> dict[str, Tensor]:
    """Return the share of the codebook that a batch's likeliest codes use, and the perplexity of their distribution, for logits (B, P, h, w)."""
    return spread(torch.bincount(logits.argmax(dim=1).flatten(), minlength=logits.shape[1]))


def spread(counts: Tensor) -> dict[str, Tensor]:
    """Return the share of codes that occur and the perplexity of counts (P,): P where all occur as often, 1 where only one does."""
    shares = counts / counts.sum().clamp(min=1)
    return {"codes_used": (counts > 0).float().mean(), "code_perplexity": torch.special.entr(shares).sum().exp()}


def evaluate(
    cfg: TokenizerConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Return the squared error in [0, 1] of what hard codes rebuild, and how the held-out images use the codebook; draw some of them."""
    assert isinstance(model, DVAE)
    dist = state.dist
    tokenizer = DVAETokenizer(cfg.model, model.encoder, model.decoder).to(dist.device)
    counts = torch.zeros(cfg.model.codes, dtype=torch.int64, device=dist.device)
    error = torch.zeros(2, device=dist.device)
    policy = cfg.data.unreadable()
    for batch in held_out_batches(cfg, parts, dist, policy):
        codes = tokenizer(batch.image)
        counts += torch.bincount(codes.flatten(), minlength=cfg.model.codes)
        square = (tokenizer.decode(codes) - batch.image / 255).square()
        error += torch.stack([square.mean(dim=(1, 2, 3)).sum(), torch.full_like(square[:, 0, 0, 0], 1.0).sum()])
    if dist.world > 1:
        torch.distributed.all_reduce(counts)
    mean = read_mean({"error": error[0], "images": error[1], **spread(counts)}, dist)
    if not mean["images"]:
        raise ValueError(f"no image of the {parts.split} set could be read")
    if mean["codes_used"] < cfg.least_use:
        log.warning(
            "only %.1f%% of the %d codes are in use: the codebook has collapsed; raise kl.end, or let tau fall later (tau.epochs)",
            100 * mean["codes_used"],
            cfg.model.codes,
        )
    if dist.is_main:
        save_sheet(folder.pictures / f"step_{step:08d}.png", picture_rows(cfg, parts, tokenizer, dist.device))
    figures = {
        "mse": mean["error"] / mean["images"],
        "codes_used": mean["codes_used"],
        "code_perplexity": mean["code_perplexity"],
    }
    return {f"{parts.split}_{name}": value for name, value in figures.items()} | unread(policy, dist)


@torch.no_grad()
def picture_rows(cfg: TokenizerConfig, parts: Parts, tokenizer: DVAETokenizer, device: torch.device) -> Tensor:
    """Return the panels (B, 2, 3, S, S), original | rebuilt from codes, of a few held-out images."""
    shown = parts._replace(held_out=Spread(parts.held_out, cfg.pictures))
    seen = held_out_batches(cfg, shown, Dist(device), cfg.data.unreadable())
    pairs = [torch.stack([batch.image / 255, tokenizer.decode(tokenizer(batch.image))], dim=1) for batch in seen]
    return torch.cat(pairs) if pairs else torch.zeros(0, 2, 3, 1, 1)


def feed(cfg: TokenizerConfig, parts: Parts, share: Share, *, dist: Dist) -> Generator[Batch, None, None]:
    """Yield the micro-batches of this rank from step `share.start` on, without end."""
    crops = Crops(source=parts.train, augmentation=training_views(cfg.data), seed=cfg.seed)
    return batches(
        crops, share, workers=cfg.run.workers, pin=dist.device.type == "cuda", unreadable=cfg.data.unreadable()
    )


def held_out_batches(cfg: TokenizerConfig, parts: Parts, dist: Dist, policy: Unreadable) -> Iterator[Batch]:
    """Return this rank's part of the held-out images."""
    return pass_over(
        parts.held_out,
        evaluation_views(cfg.data),
        dist,
        batch=cfg.run.evaluation_batch,
        workers=cfg.run.workers,
        unreadable=policy,
    )


def build_state(cfg: TokenizerConfig, loop: LoopConfig, *, dist: Dist) -> TrainState:
    """Return model and optimizer before the first step."""
    torch.manual_seed(fold(cfg.seed, "init"))
    model = DVAE(cfg.model)
    dressed = assemble(model, dist=dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations)
    groups = param_groups(model, weight_decay=cfg.optim.weight_decay, no_decay=spared(model, cfg.optim, default=()))
    return TrainState.create(
        dressed, build_optimizer(cfg.optim, groups, lr=peak_lr(cfg.optim, global_batch=cfg.batch)), loop, dist=dist
    )


def headline(cfg: TokenizerConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> str:
    """Return what is about to happen, in one sentence per line."""
    return (
        f"{cfg.method()} ({cfg.scale} scale), {len(parts.train)} training images, evaluated on {len(parts.held_out)} of the {parts.split} split\n"
        f"{plan(cfg, loop, dist)}"
    )


def export(cfg: TokenizerConfig, state: TrainState, folder: WorkDir) -> None:
    """Write the tokenizer alone."""
    model = state.averaged
    assert isinstance(model, DVAE)
    about = {
        "recipe": cfg.model_dump(mode="json", exclude={"run"}),
        "digest": cfg.digest(),
        "scale": cfg.scale,
        checkpoints.RECORD: record_of(state).exported().model_dump(mode="json"),
    }
    export_tokenizer(folder.root / TOKENIZER, model, about=about)


def finish(
    cfg: TokenizerConfig, parts: Parts, state: TrainState, loop: LoopConfig, folder: WorkDir, log: Logger
) -> list[results.Result]:
    """Write the tokenizer and append the run's results."""
    path = folder.root / TOKENIZER
    export(cfg, state, folder)
    cells = math.prod(side // cfg.model.stride for side in sides(cfg.data.size))
    units = {"mse": "squared error in [0, 1]", "codes_used": "share", "code_perplexity": "codes"}
    written = [
        results.Result(
            task="tokenizer", protocol=cfg.method(), dataset=cfg.data.name, split=parts.split, metric=metric, value=value,
            unit=units[metric.removeprefix(f"{parts.split}_")], higher_is_better=not metric.endswith("mse"), backbone=cfg.method(), pretrain="none",
            checkpoint_sha256=checkpoints.sha256(path), flops_per_image=None, tokens_per_image=cells,
            **facts(cfg, state, folder),
        )
        for metric, value in state.metrics.items() if metric != "unreadable"
    ]  # fmt: skip
    written = results.append(folder.results, written)
    numbers = ", ".join(f"{metric} {value:.4g}" for metric, value in state.metrics.items())
    log.say(f"done: {path} (target=dict(name='token', tokenizer='{path}')), pictures in {folder.pictures}; {numbers}")
    return written
