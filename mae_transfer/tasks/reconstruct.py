"""Pictures of what a finished or running pretraining makes of any images, at any mask ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import Spec, build, load
from mae_transfer.core.masks import MASKERS
from mae_transfer.data import Masking, open_source
from mae_transfer.draw.reconstructions import save_sheet
from mae_transfer.engine import checkpoint
from mae_transfer.models.mae import MAE
from mae_transfer.tasks.pretrain import Parts, PretrainConfig, load_start, picture_rows
from mae_transfer.tasks.targets import open_target
from mae_transfer.tasks.workdir import WorkDir


def reconstruct(
    run: str | Path,
    images: Path | None,
    *,
    mask_ratios: Sequence[float] | None,
    out: Path,
    most: int = 16,
    config: Path | None = None,
) -> list[Path]:
    """Draw what a pretrained model makes of images, one sheet per mask ratio; return the sheets' paths.

    Args:
        run: a run's work dir, whose newest checkpoint is drawn; or what PretrainConfig.start takes, with the config that it was trained by.
        config: a pretraining config, for weights that come without one.
        mask_ratios: shares of hidden patches; None: the mask that the run was trained with.
        images: a folder of images, in any depth; None: the run's own validation images (training images where it has none).
        most: images to draw, spread evenly over the folder.
    Raises:
        ValueError: no checkpoint, no images, or a ratio that hides nothing or everything.
    """
    cfg = load(WorkDir(Path(run)).config if config is None else config, PretrainConfig)
    saved = None
    if config is None:
        found = checkpoint.load_newest(WorkDir(Path(run)).checkpoints)
        if found is None:
            raise ValueError(f"{run} has no checkpoint yet: run tools/pretrain.py with --work-dir {run} first")
        saved = found.payload
    grid = cfg.model.encoder.grid()
    spec = Spec.model_validate(
        {key: value for key, value in cfg.target.model_dump().items() if key != "cache"}
    )  # kept tokens are of other images
    target = open_target(spec, cfg.model.encoder, cfg.statistics, saved=saved["extra"].get("target") if saved else None)
    model = MAE(cfg.model, target.dim).eval()
    if saved is None:
        load_start(model, str(run))
    else:
        load_strict(model, saved.get("ema", saved["model"]), where=f"the newest checkpoint of {run}")
    shown = (
        cfg.data.val or cfg.data.train
        if images is None
        else Spec.model_validate({"name": "folder", "root": str(images), "labelled": False})
    )
    source = open_source(shown, cfg.data.root)
    masks = {f"ratio_{ratio:g}": {**cfg.mask.model_dump(), "ratio": ratio} for ratio in mask_ratios or ()} or {
        cfg.mask.name: cfg.mask.model_dump()
    }
    sheets = {}
    for name, mask in masks.items():
        parts = Parts(target, Masking(build(MASKERS, Spec.model_validate(mask)), grid), source, source, "images")
        sheets[out / f"{name}.png"] = picture_rows(cfg, parts, model, torch.device("cpu"), most=most)
    for path, drawn in sheets.items():
        save_sheet(path, drawn)
    return list(sheets)
