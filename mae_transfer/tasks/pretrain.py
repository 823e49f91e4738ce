"""Masked-autoencoder pretraining: images in, a backbone and pictures out (He et al., arXiv 2111.06377).

Legend: B batch, N patches, V visible, M = N - V hidden, P target size per patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer import checkpoints
from mae_transfer.core.masks import AnyMask, Random
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.data import Crops, DataConfig, Masking, Samples, Source
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import read_mean
from mae_transfer.engine.loop import Step
from mae_transfer.interfaces import Batch, Mask, Target
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.results import Result
from mae_transfer.seeding import fold
from mae_transfer.targets import AnyTarget, NormPixelConfig
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.encoders import EncoderConfig, EncoderTask
from mae_transfer.tasks.images import sheet
from mae_transfer.tasks.sweep import EVALUATION_SEED, unread
from mae_transfer.tasks.targets import (
    PREFIXES,
    buffers_of,
    digest_of,
    digest_of_file,
    open_target,
    references_of,
)


class PretrainConfig(EncoderConfig):
    """A pretraining run. It is evaluated by its loss on validation images, and by pictures."""

    debug: ClassVar[dict[str, Any]] = {
        **TrainConfig.debug,
        "data.train": {"name": "shapes", "length": 8},
        "data.val": {"name": "shapes", "length": 2, "seed": 1},
        "monitor?": None,
        "data.crops_per_image": 1,
        "model.encoder.size": None,
        "model.encoder.dim": 32,
        "model.encoder.depth": 2,
        "model.encoder.heads": 2,
        "model.decoder.dim": 16,
        "model.decoder.heads": 2,
        "schedule.milestones": (),
        "target.tokenizer?": "random:16/8",
        "target.teacher?": "random:ViT-Ti/16",
        "target.basis?": "random:8",
    }

    data: DataConfig = DataConfig()
    """Images and their augmentation."""
    model: MAEConfig = MAEConfig()
    """Encoder and decoder."""
    mask: AnyMask = Random()
    """Which patches are hidden. `ratio` is their share."""
    target: AnyTarget = NormPixelConfig()
    """What the decoder predicts."""
    start: str | None = None
    """Weights to start from: released:mae_vit_base_full or mae-full:PATH (a released file with its decoder), or a
    step_*.pt of this package. None: fresh weights."""

    @model_validator(mode="after")
    def _mask_fits(self) -> Self:
        self.predicted()
        return self

    def decodes_on_device(self) -> bool:
        return self.data.leaves_one_crop(self.run.augment_on)

    def predicted(self) -> int | None:
        """Return the number of patches that a training step predicts; None: all hidden ones."""
        h, w = self.model.encoder.grid()
        return self.model.decoder.predicted(h * w - self.mask.visible((h, w)))

    def method(self) -> str:
        """Return what a table calls this pretraining: "MAE norm_pixel, random 75%, 800 ep".

        "CrossMAE norm_pixel, random 75%, 25% predicted, 800 ep": both shares are of all patches.
        """
        h, w = grid = self.model.encoder.grid()
        name = "CrossMAE" if self.model.decoder.kind == "cross" else "MAE"
        hidden, predicted = 1 - self.mask.visible(grid) / (h * w), self.predicted()
        part = f"{predicted / (h * w):.0%} predicted, " if predicted else ""
        return f"{name} {self.target.name}, {self.mask.name} {hidden:.0%}, {part}{self.epochs:g} ep"


class Pretrain(EncoderTask[PretrainConfig]):
    """A pretraining run."""

    target: Target
    masking: Masking

    def open(self) -> None:
        cfg = self.cfg
        self.set_target(open_target(cfg.target, cfg.model.encoder, cfg.statistics))
        super().open()
        self.set_mask(cfg.mask)
        references = {"start": cfg.start, **references_of(cfg.target)}
        self.inputs = {
            role: checkpoints.origin(reference, PREFIXES, sha256=digest_of_file(reference))
            for role, reference in references.items()
            if reference is not None
        }

    def prepared(self, source: Source, purpose: str) -> Source:
        if getattr(self.target, "cache", None) is None:
            return source
        from mae_transfer.tasks.codes import with_codes

        cfg, key = self.cfg, purpose + digest_of(self.cfg.target)
        return with_codes(source, self.target, cfg.data, cfg.run, self.dist, key=key)

    def set_target(self, target: Target) -> None:
        """Use this target, on the run's device."""
        self.target, self.views = target.to(self.dist.device), target.views

    def set_mask(self, mask: AnyMask) -> None:
        """Use this mask sampler."""
        self.masking = Masking(mask, self.cfg.model.encoder.grid())

    def training_samples(self) -> Samples[Any, Any]:
        """Return the training images; the mask of a crop says which hidden patches are predicted."""
        samples = super().training_samples()
        assert isinstance(samples, Crops)
        return replace(samples, predicted=self.cfg.predicted())

    def model(self) -> nn.Module:
        torch.manual_seed(fold(self.cfg.seed, "init"))
        model = MAE(self.cfg.model, self.target.dim)
        if self.cfg.start is not None:
            load_start(model, self.cfg.start, self.cfg.statistics)
        return model

    def loss(self, model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        return mae_loss(model, batch, at, target=self.target, statistics=self.cfg.statistics)

    def digest(self) -> str:
        return digest_of(self.cfg.target)

    def extra(self) -> dict[str, Any]:
        return {"target": buffers_of(self.target)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the loss on the held-out images under fixed masks, and draw some.

        It is computed in float32 and is the mean over all hidden patches, whatever share training predicts.
        """
        dist, policy = self.dist, self.cfg.data.unreadable()
        # for a corruption that draws; the loop seeds every step anew
        torch.manual_seed(fold(EVALUATION_SEED, "evaluate", dist.rank))
        total = torch.zeros(2, dtype=torch.float64 if dist.device.type != "mps" else torch.float32, device=dist.device)
        for batch in self.sweep(self.held_out_samples(), policy):
            assert batch.mask is not None
            prediction = model(normalize(batch.image, self.cfg.statistics), batch.mask)
            losses = self.target.loss(prediction, self.target(batch, batch.mask.ids_masked))
            total += torch.stack([losses.sum(), torch.full_like(losses, 1.0).sum()])
        mean = read_mean({"loss": total[0], "patches": total[1]}, dist)
        if not mean["patches"]:
            raise ValueError(f"no image of the {self.split} set could be read")
        if dist.is_main:
            from mae_transfer.draw.reconstructions import PANELS

            self.save_pictures(step, self.picture_rows(model, most=self.cfg.pictures), PANELS)
        return {f"{self.split}_loss": mean["loss"] / mean["patches"], **unread(policy, dist)}

    @torch.no_grad()
    def picture_rows(self, model: nn.Module, *, most: int) -> Tensor:
        """Return the panels (B, 4, 3, H, W) of the reconstructions of up to `most` held-out images."""
        from mae_transfer.draw.reconstructions import draw_panels

        rows = []
        for batch in self.sweep(self.held_out_samples(most), self.cfg.data.unreadable(), alone=True):
            assert batch.mask is not None
            prediction = model(normalize(batch.image, self.cfg.statistics), batch.mask)
            decoded = self.target.decode(prediction, batch, batch.mask.ids_masked)
            rows.append(draw_panels(batch.image, decoded, batch.mask))
        return sheet(rows)

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        """Return one Result per figure. Its tokens are those that the encoder processes."""
        encoder, (h, w) = self.cfg.model.encoder, self.masking.grid
        patches = h * w if self.cfg.model.corrupt else self.masking.visible
        own = {
            "split": self.split,
            "unit": "loss per hidden patch",
            "higher_is_better": False,
            "backbone": encoder.name(),
            "pretrain": self.method,
            "checkpoint_sha256": checkpoints.sha256(self.folder.backbone),
            "flops_per_image": self.training_flops(),
            "tokens_per_image": patches + int(encoder.class_token),
        }
        return [
            Result.model_validate({**shared, **own, "metric": metric, "value": value})
            for metric, value in figures.items()
            if metric != "unreadable"
        ]

    def training_flops(self) -> int:
        """Return the floating-point operations of forward and backward of one image, counted by torch.

        A multiply-add counts as 2. Attention is included.
        """
        cfg, (h, w) = self.cfg.model, self.masking.grid
        visible, predicted = self.masking.visible, self.cfg.predicted()
        with torch.device("meta"):
            model = MAE(cfg, self.target.dim)
            images = torch.zeros(1, cfg.encoder.channels, h * cfg.encoder.patch, w * cfg.encoder.patch)
            ids = torch.zeros(1, h * w, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            drawn = None if predicted is None else ids[:, :predicted]
            model(images, Mask(ids[:, :visible], ids[:, visible:], drawn)).sum().backward()
        return int(counter.get_total_flops())


def mae_loss(
    model: nn.Module, batch: Batch, at: Step, *, target: Target, statistics: Statistics
) -> tuple[Tensor, dict[str, Tensor]]:
    """Predict hidden patches and compare them with their targets; return the mean over the predicted ones."""
    assert batch.mask is not None
    truth = target(batch, batch.mask.ids_predicted)  # before the activations exist: lower peak memory
    prediction = model(normalize(batch.image, statistics), batch.mask)
    metrics = target.metrics(prediction.detach(), truth) if at.logs else {}
    return target.loss(prediction, truth).mean(), metrics


def load_start(model: MAE, reference: str, statistics: Statistics) -> None:
    """Fill encoder and decoder from mae-full:PATH, a release of that layout, or a step_*.pt of this package.

    If the images of the new run have another size, the positions are adapted (checkpoints.fill).

    Raises:
        ValueError: names the tensors, the field of the encoder or the statistics that do not fit. A state of an earlier
            version records no fields.
    """
    prefix, path = checkpoints.split(checkpoints.downloaded(reference), checkpoints.PREFIXES)
    if prefix == "mae-full":
        checkpoints.load_mae(model, Path(path))
    elif not prefix and path.endswith(".pt"):
        if checkpoints.metadata(Path(path)):
            from mae_transfer.tasks.backbones import load_same

            load_same(model.encoder, path, statistics, where="model.encoder")
        payload = checkpoint.load(Path(path))
        checkpoints.fill(model, checkpoints.evaluated(payload), where=path)
    else:
        raise ValueError(
            f"start = {reference!r}: give a released MAE with its decoder (released:mae_vit_base_full, mae-full:PATH) "
            "or a step_*.pt of this package"
        )
