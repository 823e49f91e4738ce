"""A run's folder: one config per folder, what lies in it where, and whether to begin or to continue."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from mae_transfer.config import Schema, load
from mae_transfer.disk import write_text
from mae_transfer.engine import checkpoint

S = TypeVar("S", bound=Schema)


class WorkDir(NamedTuple):
    """The names in a work dir."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config, a file that loads back to an equal one."""
        return self.root / "config.py"

    @property
    def checkpoints(self) -> Path:
        """The training states, step_*.pt."""
        return self.root / "checkpoints"

    @property
    def backbone(self) -> Path:
        """The encoder alone, for the transfer tasks."""
        return self.root / "backbone.safetensors"

    @property
    def results(self) -> Path:
        """The numbers of the run."""
        return self.root / "results.jsonl"

    @property
    def detections(self) -> Path:
        """Validation images with their objects beside what was found."""
        return self.root / "detections"

    @property
    def predictions(self) -> Path:
        """All that a detector found in the validation set, in COCO's result format."""
        return self.root / "predictions.json"

    @property
    def pictures(self) -> Path:
        """What the model makes of a few images."""
        return self.root / "reconstructions"

    @property
    def segmentations(self) -> Path:
        """Images with their class maps, true and predicted."""
        return self.root / "segmentations"


def open_work_dir(root: Path, cfg: S, *, resume: bool) -> WorkDir:
    """Return the names in the folder, which may hold a run of this very config; nothing is written before everything else is checked.

    A config.py without a checkpoint or a result is left by a run that did not get that far, and binds nobody.

    Raises:
        ValueError: the folder belongs to another config (names the values that differ), or holds a run and `resume` is off.
    """
    folder = WorkDir(root)
    holds_run = checkpoint.newest(folder.checkpoints) is not None or folder.results.is_file()
    if holds_run and folder.config.exists():
        differences = load(folder.config, type(cfg)).differences(cfg)
        if differences:
            remedy = f"use another --work-dir, or delete {folder.config} if the folder's run should go on with the new values"
            raise ValueError(f"{root} holds a run of another config; {remedy}:\n  " + "\n  ".join(differences))
    if not resume and checkpoint.newest(folder.checkpoints) is not None:
        raise ValueError(f"{root} already holds a run; continue it with --resume, or use another --work-dir")
    return folder


def write_config(folder: WorkDir, cfg: Schema) -> None:
    """Make the folder and write its config."""
    folder.root.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, cfg.source(f"The resolved config of this run (digest {cfg.digest()})."))


def run_of(checkpoint_file: str) -> Path | None:
    """Return the work dir that a training state (D/checkpoints/step_*.pt) lies in; None where it lies elsewhere."""
    root = Path(checkpoint_file).resolve().parent.parent
    return root if WorkDir(root).config.is_file() else None
