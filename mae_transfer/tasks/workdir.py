"""The work dir of a run: the names of its files, and the rules that it holds one config and one process uses it."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mae_transfer.config import Schema, load_saved
from mae_transfer.data import FolderConfig, PhotosConfig
from mae_transfer.disk import write_text
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist
from mae_transfer.locks import locked


class WorkDir:
    """The paths in a work dir."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.py"  # the resolved config; loading it gives an equal config
        self.checkpoints = root / "checkpoints"  # the training states, step_*.pt
        self.backbone = root / "backbone.safetensors"  # the encoder, for the transfer tasks
        self.results = root / "results.jsonl"  # the numbers of the run
        self.predictions = root / "predictions.json"  # of a detector for the validation set, in COCO's result format
        self.reconstructions = root / "reconstructions"  # pictures of a few images
        self.detections = root / "detections"  # pictures of validation images with objects and predictions
        self.segmentations = root / "segmentations"  # pictures of images with true and predicted class maps


def open_work_dir(root: Path, cfg: Schema, *, resume: bool) -> WorkDir:
    """Return the paths in the folder, which may hold a run of the same config. Nothing is written.

    A config.py without a checkpoint or a result belongs to a run that stopped early. It is ignored.

    Raises:
        ValueError: the folder holds a run of another config (the message has the values that differ), or it holds a run
            and `resume` is False, or it lies among the images.
    """
    _check_outside_images(root, cfg)
    folder = WorkDir(root)
    holds_run = checkpoint.newest(folder.checkpoints) is not None or folder.results.is_file()
    if holds_run and folder.config.exists():
        differences = load_saved(folder.config, type(cfg)).differences(cfg)
        if differences:
            remedy = f"use another --work-dir, or delete {folder.config} to continue the run with the new values"
            raise ValueError(f"{root} holds a run of another config; {remedy}:\n  " + "\n  ".join(differences))
    if not resume and checkpoint.newest(folder.checkpoints) is not None:
        raise ValueError(f"{root} already holds a run; continue it with --resume, or use another --work-dir")
    return folder


def _check_outside_images(root: Path, cfg: Schema) -> None:
    """Raise ValueError if the pictures of a run would become images of its data."""
    data: Any = getattr(cfg, "data", None)
    for name in ("train", "val", "holdout"):
        part = getattr(data, name, None)
        if isinstance(part, FolderConfig | PhotosConfig) and (part := part.completed({"root": data.root})).root:
            images = part.searched
            if root.resolve().is_relative_to(images.resolve()):
                raise ValueError(
                    f"--work-dir {root} lies in {images}, the folder of data.{name}: the pictures of the run would "
                    "become images of the set; use a folder outside it"
                )


def write_config(folder: WorkDir, cfg: Schema) -> None:
    """Make the folder and write its config."""
    folder.root.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, cfg.source(f"The resolved config of this run (digest {cfg.digest()})."))


def run_of(checkpoint_file: str) -> Path | None:
    """Return the work dir of a training state (D/checkpoints/step_*.pt); None if it is not in a work dir."""
    root = Path(checkpoint_file).resolve().parent.parent
    return root if WorkDir(root).config.is_file() else None


def sole_user(work_dir: Path, dist: Dist) -> AbstractContextManager[int | None]:
    """Return a lock of the work dir (rank 0); ValueError names the process that holds it."""
    if not dist.is_main:
        return nullcontext()
    return locked(work_dir / ".run.lock", owner=f"process {os.getpid()} on {socket.gethostname()}")
