"""Draws the reconstructions of a finished or running pretraining, for any images and mask ratios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mae_transfer.checkpoints.files import evaluated, load_strict
from mae_transfer.config import load, load_saved
from mae_transfer.data import FolderConfig, open_source
from mae_transfer.draw.reconstructions import PANELS, save_sheet
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist
from mae_transfer.models.mae import MAE
from mae_transfer.targets import TokenConfig
from mae_transfer.tasks.pretrain import Pretrain, PretrainConfig, load_start
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
    """Draw the reconstructions of a pretrained model, one picture per mask ratio; return the paths of the pictures.

    Args:
        run: a run's work dir, whose newest checkpoint is used; or, together with `config`, a reference that
            PretrainConfig.start accepts.
        config: the pretraining config of weights without a work dir.
        mask_ratios: shares of hidden patches. None: the mask of the run.
        images: a folder of images, in any depth. None: the run's validation images (training images if it has none).
        most: number of images to draw, spread evenly over the folder.
    Raises:
        ValueError: there is no checkpoint or no image, or a ratio hides nothing or everything.
    """
    cfg = load_saved(WorkDir(Path(run)).config, PretrainConfig) if config is None else load(config, PretrainConfig)
    saved = None
    if config is None:
        newest = checkpoint.load_newest(WorkDir(Path(run)).checkpoints)
        if newest is None:
            raise ValueError(f"{run} has no checkpoint yet: run tools/pretrain.py with --work-dir {run} first")
        saved = newest.payload
    task = Pretrain(cfg, Dist(torch.device("cpu")))
    # cached tokens belong to other images
    target = cfg.target.model_copy(update={"cache": None}) if isinstance(cfg.target, TokenConfig) else cfg.target
    basis = saved["extra"].get("target") if saved else None
    task.set_target(open_target(target, cfg.model.encoder, cfg.statistics, saved=basis))
    model = MAE(cfg.model, task.target.dim).eval()
    if saved is None:
        load_start(model, str(run), cfg.statistics)
    else:
        load_strict(model, evaluated(saved), where=f"the newest checkpoint of {run}")
    shown = cfg.data.val or cfg.data.train if images is None else FolderConfig(root=str(images), labelled=False)
    task.set_held_out(open_source(shown, cfg.data.root), "images", most=most)
    masks = {f"ratio_{ratio:g}": cfg.mask.model_copy(update={"ratio": ratio}) for ratio in mask_ratios or ()}
    sheets = {}
    for name, mask in (masks or {cfg.mask.name: cfg.mask}).items():
        task.set_mask(mask)
        sheets[out / f"{name}.png"] = task.picture_rows(model, most=most)
    for path, drawn in sheets.items():
        save_sheet(path, drawn, PANELS)
    return list(sheets)
