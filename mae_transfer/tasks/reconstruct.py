"""Pictures of what a finished or running pretraining makes of any images, at any mask ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mae_transfer.config import Spec, build, load
from mae_transfer.core.masks import MASKERS
from mae_transfer.data import Masking, open_source
from mae_transfer.draw.reconstructions import save_sheet
from mae_transfer.engine import checkpoint
from mae_transfer.models.mae import MAE
from mae_transfer.tasks.pretrain import Parts, PretrainConfig, picture_rows
from mae_transfer.tasks.targets import open_target
from mae_transfer.tasks.workdir import WorkDir


def reconstruct(work_dir: Path, images: Path | None, *, mask_ratios: Sequence[float] | None, out: Path, most: int = 16) -> list[Path]:
    """Draw what the newest checkpoint of `work_dir` makes of images, one sheet per mask ratio; return the sheets' paths.

    Args:
        mask_ratios: shares of hidden patches; None: the mask that the run was trained with.
        images: a folder of images, in any depth; None: the run's own validation images (training images where it has none).
        most: images to draw, spread evenly over the folder.
    Raises:
        ValueError: no checkpoint, no images, or a ratio that hides nothing or everything.
    """
    cfg = load(WorkDir(work_dir).config, PretrainConfig)
    found = checkpoint.load_newest(WorkDir(work_dir).checkpoints)
    if found is None:
        raise ValueError(f"{work_dir} has no checkpoint yet: run tools/pretrain.py with --work-dir {work_dir} first")
    grid = cfg.model.encoder.grid()
    spec = Spec.model_validate({key: value for key, value in cfg.target.model_dump().items() if key != "cache"})  # kept tokens are of other images
    target = open_target(spec, cfg.model.encoder, cfg.statistics, saved=found.payload["extra"].get("target"))
    model = MAE(cfg.model, target.dim).eval()
    model.load_state_dict(found.payload.get("ema", found.payload["model"]))
    shown = cfg.data.val or cfg.data.train if images is None else Spec.model_validate({"name": "folder", "root": str(images), "labelled": False})
    source = open_source(shown, cfg.data.root)
    masks = {f"ratio_{ratio:g}": {**cfg.mask.model_dump(), "ratio": ratio} for ratio in mask_ratios or ()} or {cfg.mask.name: cfg.mask.model_dump()}
    sheets = {}
    for name, mask in masks.items():
        parts = Parts(target, Masking(build(MASKERS, Spec.model_validate(mask)), grid), source, source, "images")
        sheets[out / f"{name}.png"] = picture_rows(cfg, parts, model, torch.device("cpu"), most=most)
    for path, drawn in sheets.items():
        save_sheet(path, drawn)
    return list(sheets)
