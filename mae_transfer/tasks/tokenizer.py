"""Training a discrete VAE on any images: images in, a tokenizer and pictures out (DALL-E, arXiv 2102.12092, stage one).

Legend: B batch, S side of an image, P codes, h x w cells.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer import checkpoints
from mae_transfer.bounds import Probability
from mae_transfer.checkpoints.tokenizers import export_tokenizer
from mae_transfer.core.patches import sides
from mae_transfer.data import DataConfig
from mae_transfer.engine.dist import read_mean
from mae_transfer.engine.loop import Step
from mae_transfer.engine.schedule import Anneal
from mae_transfer.engine.state import LoopConfig
from mae_transfer.interfaces import Batch
from mae_transfer.models.dvae import DVAE, DVAEConfig, DVAETokenizer, kl_to_uniform, map_pixels, reconstruction_loss
from mae_transfer.results import Result
from mae_transfer.seeding import fold
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.images import ImageConfig, ImageTask, sheet
from mae_transfer.tasks.sweep import unread

_LOG = logging.getLogger(__name__)
TOKENIZER = "tokenizer.safetensors"


class TokenizerConfig(ImageConfig):
    """A run of the discrete VAE. It is evaluated by the reconstruction of validation images from hard codes."""

    debug: ClassVar[dict[str, Any]] = {
        **TrainConfig.debug,
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
    }

    data: DataConfig = DataConfig()
    """Images and their augmentation. `size` is the size in training; later any multiple of the stride can be used."""
    model: DVAEConfig = DVAEConfig()
    """Codebook and network."""
    tau: Anneal = Anneal(start=1.0, end=1 / 16, epochs=60.0)
    """Temperature of the Gumbel-softmax."""
    kl: Anneal = Anneal(start=0.0, end=6.6, epochs=2.0)
    """Weight of the KL divergence to the uniform distribution over codes. The KL is summed over cells, the
    reconstruction loss over pixels."""
    trains = "the autoencoder"
    least_use: Probability = 0.1
    """Share of the codebook in use below which the run warns of a collapsed codebook."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if any(side % self.model.stride for side in sides(self.data.size)):
            raise ValueError(
                f"data.size = {self.data.size} is not a multiple of the tokenizer's stride {self.model.stride}"
            )
        if len(self.mean) != 3:
            raise ValueError(f"mean has {len(self.mean)} values, but the autoencoder takes 3 channels: give 3 values")
        return self

    def method(self) -> str:
        """Return what a table calls this tokenizer: "dVAE 512/8, 20 ep"."""
        return f"dVAE {self.model.codes}/{self.model.stride}, {self.epochs:g} ep"


class Tokenizer(ImageTask[TokenizerConfig]):
    """A tokenizer run."""

    name = "tokenizer"
    artifact = TOKENIZER
    length: dict[str, int]
    """Steps of an epoch and of the run, for the moving values."""

    @property
    def method(self) -> str:
        return self.cfg.method()

    def model(self) -> nn.Module:
        torch.manual_seed(fold(self.cfg.seed, "init"))
        return DVAE(self.cfg.model)

    def prepare(self, loop: LoopConfig) -> None:
        """Note the length of the run; ValueError if temperature or KL weight move for longer than it lasts."""
        self.length = {"steps_per_epoch": loop.steps_per_epoch, "steps": loop.steps}
        for moving in (self.cfg.tau, self.cfg.kl):
            moving.at(0, **self.length)

    def loss(self, model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative evidence bound per pixel value, as DALL-E scales it (appendix A.2)."""
        cfg, pixels = self.cfg, map_pixels(batch.image)
        tau = torch.full((), cfg.tau.at(at.number, **self.length), device=pixels.device)
        output = model(pixels, tau)
        rebuilt, kl = reconstruction_loss(output.pixels, pixels, cfg.model.loss), kl_to_uniform(output.logits)
        weight = cfg.kl.at(at.number, **self.length) * (1 / (3 * cfg.model.stride**2))
        loss = rebuilt + weight * kl
        if not at.logs:
            return loss, {}
        return loss, {"reconstruction": rebuilt.detach(), "kl": kl.detach(), **usage(output.logits.detach())}

    def evaluate(self, model: DVAE, step: int) -> dict[str, float]:
        """Return the squared error of images in [0, 1] rebuilt from hard codes, and the codebook's use; draw some."""
        cfg, dist, policy = self.cfg, self.dist, self.cfg.data.unreadable()
        tokenizer = DVAETokenizer(cfg.model, model.encoder, model.decoder).to(dist.device)
        counts = torch.zeros(cfg.model.codes, dtype=torch.int64, device=dist.device)
        error = torch.zeros(2, device=dist.device)
        for batch in self.sweep(self.held_out_samples(), policy):
            codes = tokenizer(batch.image)
            counts += torch.bincount(codes.flatten(), minlength=cfg.model.codes)
            square = (tokenizer.decode(codes) - batch.image / 255).square()
            error += torch.stack([square.mean(dim=(1, 2, 3)).sum(), torch.full_like(square[:, 0, 0, 0], 1.0).sum()])
        if dist.world > 1:
            torch.distributed.all_reduce(counts)
        mean = read_mean({"error": error[0], "images": error[1], **spread(counts)}, dist)
        if not mean["images"]:
            raise ValueError(f"no image of the {self.split} set could be read")
        if mean["codes_used"] < cfg.least_use:
            _LOG.warning(
                "only %.1f%% of the %d codes are in use: the codebook has collapsed; raise kl.end, or let tau fall "
                "later (tau.epochs)",
                100 * mean["codes_used"],
                cfg.model.codes,
            )
        if dist.is_main:
            self.save_pictures(step, self.picture_rows(tokenizer), ("original", "decoded"))
        figures = {
            "mse": mean["error"] / mean["images"],
            "codes_used": mean["codes_used"],
            "code_perplexity": mean["code_perplexity"],
        }
        return {f"{self.split}_{name}": value for name, value in figures.items()} | unread(policy, dist)

    @torch.no_grad()
    def picture_rows(self, tokenizer: DVAETokenizer) -> Tensor:
        """Return the panels (B, 2, 3, S, S), original | rebuilt from codes, of a few held-out images."""
        seen = self.sweep(self.held_out_samples(self.cfg.pictures), self.cfg.data.unreadable(), alone=True)
        pairs = [torch.stack([batch.image / 255, tokenizer.decode(tokenizer(batch.image))], dim=1) for batch in seen]
        return sheet(pairs)

    def export(self, model: DVAE) -> None:
        export_tokenizer(self.folder.root / TOKENIZER, model, about=self.about())

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        units = {"mse": "squared error in [0, 1]", "codes_used": "share", "code_perplexity": "codes"}
        own = {
            "split": self.split,
            "backbone": self.method,
            "pretrain": "none",
            "checkpoint_sha256": checkpoints.sha256(self.folder.root / TOKENIZER),
            "flops_per_image": None,
            "tokens_per_image": math.prod(side // self.cfg.model.stride for side in sides(self.cfg.data.size)),
        }
        return [
            Result.model_validate(
                {
                    **shared,
                    **own,
                    "metric": metric,
                    "value": value,
                    "unit": units[metric.removeprefix(f"{self.split}_")],
                    "higher_is_better": not metric.endswith("mse"),
                }
            )
            for metric, value in figures.items()
            if metric != "unreadable"
        ]

    def closing_words(self, written: list[Result]) -> str:
        path = self.folder.root / TOKENIZER
        numbers = ", ".join(f"{result.metric} {result.value:.4g}" for result in written)
        use = f"target=dict(name='token', tokenizer='{path}')"
        return f"done: {path} ({use}), pictures in {self.folder.reconstructions}; {numbers}"


def usage(logits: Tensor) -> dict[str, Tensor]:
    """Return the share of codes that occur among a batch's likeliest codes, and the perplexity of their distribution.

    logits: (B, P, h, w).
    """
    return spread(torch.bincount(logits.argmax(dim=1).flatten(), minlength=logits.shape[1]))


def spread(counts: Tensor) -> dict[str, Tensor]:
    """Return the share of codes that occur, and the perplexity of their counts (P,).

    The perplexity is P if all codes are equally frequent, and 1 if only one occurs.
    """
    shares = counts / counts.sum().clamp(min=1)
    return {"codes_used": (counts > 0).float().mean(), "code_perplexity": torch.special.entr(shares).sum().exp()}
