"""How a number came to be: software, hardware, data, starting weights, recipe and seeds.

A record is made when a run starts. Each sitting (each start of the process) adds to it. It is stored in the training
state, in backbone.safetensors and in every result. The record of a transfer contains the record of its pretraining.
The sentence that people read is rendered from the record and is never parsed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "pillow", "safetensors", "pycocotools",
    "faster-coco-eval", "onedl-mmengine", "mmengine", "onedl-mmcv", "mmcv", "mmcv-lite", "onedl-mmsegmentation",
    "mmsegmentation", "detectron2",
)  # fmt: skip
"""The packages that compute. Only the installed ones are recorded."""
UNKNOWN = "unknown"  # version and device of a sitting that an earlier version did not record
NAMED_CLASSES = 100  # of a set with more classes, only the digest of their names is recorded


class _Frozen(BaseModel):
    """A part of a record: frozen and strict."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Software(_Frozen):
    """The code that a process runs. It is read once, when the process starts."""

    version: str
    """Version of mae_transfer."""
    commit: str | None
    """Short hash of the source tree's commit; None outside a git checkout."""
    dirty: bool
    """Whether tracked files differed from the commit."""
    packages: dict[str, str]
    """Version of Python and of each package that computes."""

    @property
    def revision(self) -> str:
        """The commit, with "+" if files differed from it; the package's version outside a git checkout."""
        return f"{self.commit}{'+' if self.dirty else ''}" if self.commit else self.version


class Seconds(_Frozen):
    """Where the time of a run went."""

    train: float = 0.0
    evaluate: float = 0.0
    save: float = 0.0

    def since(self, before: Seconds) -> Seconds:
        """Return the difference to an earlier reading."""
        return Seconds(
            train=self.train - before.train, evaluate=self.evaluate - before.evaluate, save=self.save - before.save
        )


class Sitting(_Frozen):
    """One start of the process of a run, up to its end or to the next start."""

    started_at: str
    """ISO time in UTC."""
    first_step: int
    """Optimizer steps that were complete when it started."""
    software: Software
    devices: tuple[str, ...]
    """Name of the device of each rank."""
    device_batch: int
    """Images per device and forward pass in training."""
    seconds: Seconds = Seconds()
    """What this sitting contributed to the state that the record belongs to."""


class DataSet(_Frozen):
    """The images of one part of a run ("train", "val")."""

    name: str
    """Name in the config."""
    kind: str
    """Class of the data source: Folder, Photos, Coco, LabelMaps, Shapes ..."""
    images: int
    """Images that are used."""
    whole: int
    """Images of the whole set, of which the used ones are a part."""
    classes: int = 0
    """Number of classes; 0 if the images have no labels."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their labels; empty if there are more than 100."""
    class_digest: str | None = None
    """First 16 hex digits of the sha256 of the class names, one per line; None without labels."""
    objects: int | None = None
    """Annotated objects; None if the set has none by its kind."""
    files: int = 0
    """Number of files; 0 if the set is generated."""
    bytes: int = 0
    """Size of all files."""
    fingerprint: str
    """16 hex digits of the names and sizes of the files, of the annotations, and of the class names."""

    def text(self) -> str:
        """Return "'photos' (50,000 images, 10 classes)"."""
        used = f"{self.images:,} images" if self.images == self.whole else f"{self.images:,} of {self.whole:,} images"
        return f"'{self.name}' ({used}, {f'{self.classes:,} classes' if self.classes else 'no labels'})"


class Weights(_Frozen):
    """A file of weights that a run starts from: its backbone, a tokenizer, a teacher, a basis."""

    kind: Literal["run", "released", "file", "random"]
    """"run": a run of this package, with its record below. "released": verified by a published checksum or downloaded
    by name. "file": weights of unknown origin in a known layout. "random": no weights."""
    name: str
    """Name: "MAE norm_pixel, random 75%, 800 ep", "mae_vit_base", "vit_base_patch16_224.dino", or the file's name."""
    layout: str | None = None
    """Prefix of the reference: "mae", "timm", "dino" ..."""
    sha256: str | None = None
    """Digest of the file; None for random weights and for weights that timm downloaded."""
    record: Record | None = None
    """Record of the run that made it."""


class Record(_Frozen):
    """How a number came to be."""

    run: str
    """Name of the work dir."""
    task: str
    """"pretrain", "classify", "detect", "segment", "tokenizer", "knn", "robustness"."""
    method: str
    """Name in tables: "MAE norm_pixel, random 75%, 800 ep", "finetune", "linear", "upernet" ..."""
    scale: Literal["mini", "small", "paper"]
    config_digest: str
    """Digest of the whole config without `run`."""
    recipe_digest: str
    """Digest of the config without its seed and its file of weights."""
    recipe: dict[str, Any]
    """The resolved config without `run`."""
    seed: int
    epochs: float
    """Epochs of the recipe; 0 for an evaluation."""
    reached: float | None = None
    """Epochs of a training state that is not its run's last; None: the run was whole."""
    batch: int
    """Images per optimizer step."""
    data: dict[str, DataSet] = {}
    """The data sets by part."""
    inputs: dict[str, Weights] = {}
    """The weights that the run starts from, by role: "backbone", "start", "tokenizer", "teacher", "basis".
    "checkpoint" is the training state that an evaluation measures."""
    labels: bool = True
    """Whether this run learned from labels."""
    depends_on_device_batch: tuple[str, ...] = ()
    """What makes the numbers depend on images per device: "batch norm", "mixup"; empty if nothing does."""
    earlier_configs: tuple[str, ...] = ()
    """Digests of the configs that the run had before it was resumed with another one."""
    sittings: tuple[Sitting, ...] = ()

    @model_serializer(mode="wrap")
    def _without_reached(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `reached` out of the record of a whole run, so that earlier versions read it."""
        return {name: value for name, value in dump(self).items() if name != "reached" or value is not None}

    @property
    def length(self) -> str:
        """The epochs, "800"; of a training state "400 of 800"."""
        return f"{self.epochs:g}" if self.reached is None else f"{self.reached:g} of {self.epochs:g}"

    @property
    def train_seconds(self) -> float:
        """Seconds of training over all sittings, without evaluation and saving."""
        return sum(sitting.seconds.train for sitting in self.sittings)

    def timed(self, seconds: Seconds) -> Record:
        """Return the record with the last sitting's seconds filled in, given the seconds of the whole run so far."""
        if not self.sittings:
            return self
        *before, last = self.sittings
        for sitting in before:
            seconds = seconds.since(sitting.seconds)
        return self.model_copy(update={"sittings": (*before, last.model_copy(update={"seconds": seconds}))})

    @property
    def complete(self) -> bool:
        """Whether every sitting was recorded; a run that an earlier version began has one that was not."""
        return all(UNKNOWN not in sitting.devices for sitting in self.sittings)

    def exported(self) -> Record:
        """Return the record for a file of weights, with seconds of training only, so exports are exactly repeatable."""
        kept = [s.model_copy(update={"seconds": Seconds(train=s.seconds.train)}) for s in self.sittings]
        return self.model_copy(update={"sittings": tuple(kept)})

    def device_hours(self) -> dict[str, float]:
        """Return the hours of training by device name. Hours of different devices are not added."""
        hours: dict[str, float] = {}
        for sitting in self.sittings:
            for device in sitting.devices:
                hours[device] = hours.get(device, 0.0) + sitting.seconds.train / 3600
        return hours

    def lineage(self) -> Iterator[Record]:
        """Yield this record, then the records of the runs that made its inputs, then theirs."""
        yield self
        for weights in self.inputs.values():
            if weights.record is not None:
                yield from weights.record.lineage()

    @property
    def seen_labels(self) -> bool | None:
        """Whether this run or a run before it learned from labels; None if the origin of an input is unknown."""
        known = [one.labels for one in self.lineage()]
        if any(known):
            return True
        unknown = any(w.record is None and w.kind != "random" for one in self.lineage() for w in one.inputs.values())
        return None if unknown else False

    def pretraining(self) -> Record | None:
        """Return the record of the run that pretrained the backbone; None for released, unknown and random weights."""
        trained = self.inputs.get("checkpoint")
        if trained is not None and trained.record is not None:
            return trained.record.pretraining()
        weights = self.inputs.get("backbone")
        return weights.record if weights else None

    def sentence(self) -> str:
        """Return the record in words."""
        parts = [f"{self.task}: {self.method}, seed {self.seed}"]
        if "train" in self.data and self.epochs:
            epochs = f"{self.length} epoch{'s' if self.epochs != 1 else ''}"
            parts.append(f"{epochs} of {self.data['train'].text()}, batch {self.batch}")
        if "val" in self.data:
            parts.append(f"evaluated on {self.data['val'].text()}")
        parts += [f"{role}: {_origin(weights)}" for role, weights in self.inputs.items()]
        if self.sittings:
            revisions = dict.fromkeys(sitting.software.revision for sitting in self.sittings)
            hours = ", ".join(f"{hours:.3g} h on {device}" for device, hours in self.device_hours().items())
            parts += [hours, f"code {', '.join(revisions)}"]
        return "; ".join(filter(None, parts))


def _origin(weights: Weights) -> str:
    if weights.record is not None:
        return f"[{weights.record.sentence()}]"
    suffix = {"released": " (released)", "file": " (origin unknown)", "random": "", "run": " (its record is missing)"}
    return weights.name + suffix[weights.kind]


@cache
def software() -> Software:
    """Return the code that this process runs: commit and package versions. It is read at the first call and cached."""
    commit, dirty = _commit()
    return Software(version=_version("mae_transfer") or UNKNOWN, commit=commit, dirty=dirty, packages=_packages())


def now() -> str:
    """Return the time in UTC as ISO text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _packages() -> dict[str, str]:
    versions: Mapping[str, str | None] = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in versions.items() if version}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool]:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None, False
    describe = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a file system that hangs
        return None, False
    revision = answer.stdout.strip()
    return revision.removesuffix("+") or None, revision.endswith("+")
