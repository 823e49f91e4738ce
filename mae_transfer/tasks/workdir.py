"""The work dir of a run: the names of its files, and the rule that it holds a single config."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from mae_transfer.config import Schema, load
from mae_transfer.disk import write_text
from mae_transfer.engine import checkpoint

S = TypeVar("S", bound=Schema)


class WorkDir(NamedTuple):
    """The paths in a work dir."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config. Loading it gives an equal config."""
        return self.root / "config.py"

    @property
    def checkpoints(self) -> Path:
        """The training states, step_*.pt."""
        return self.root / "checkpoints"

    @property
    def backbone(self) -> Path:
        """The encoder, for the transfer tasks."""
        return self.root / "backbone.safetensors"

    @property
    def results(self) -> Path:
        """The numbers of the run."""
        return self.root / "results.jsonl"

    @property
    def detections(self) -> Path:
        """Pictures of validation images with ground truth and predictions."""
        return self.root / "detections"

    @property
    def predictions(self) -> Path:
        """All predictions of a detector for the validation set, in COCO's result format."""
        return self.root / "predictions.json"

    @property
    def pictures(self) -> Path:
        """Reconstructions of a few images."""
        return self.root / "reconstructions"

    @property
    def segmentations(self) -> Path:
        """Pictures of images with true and predicted class maps."""
        return self.root / "segmentations"


def open_work_dir(root: Path, cfg: S, *, resume: bool) -> WorkDir:
    """Return the paths in the folder, which may hold a run of the same config. Nothing is written.

    A config.py without a checkpoint or a result belongs to a run that stopped early. It is ignored.

    Raises:
        ValueError: the folder holds a run of another config (the message has the values that differ), or it holds a run
            and `resume` is False.
    """
    folder = WorkDir(root)
    holds_run = checkpoint.newest(folder.checkpoints) is not None or folder.results.is_file()
    if holds_run and folder.config.exists():
        differences = load(folder.config, type(cfg)).differences(cfg)
        if differences:
            remedy = f"use another --work-dir, or delete {folder.config} to continue the run with the new values"
            raise ValueError(f"{root} holds a run of another config; {remedy}:\n  " + "\n  ".join(differences))
    if not resume and checkpoint.newest(folder.checkpoints) is not None:
        raise ValueError(f"{root} already holds a run; continue it with --resume, or use another --work-dir")
    return folder


def write_config(folder: WorkDir, cfg: Schema) -> None:
    """Make the folder and write its config."""
    folder.root.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, cfg.source(f"The resolved config of this run (digest {cfg.digest()})."))


def run_of(checkpoint_file: str) -> Path | None:
    """Return the work dir of a training state (D/checkpoints/step_*.pt); None if it is not in a work dir."""
    root = Path(checkpoint_file).resolve().parent.parent
    return root if WorkDir(root).config.is_file() else None
