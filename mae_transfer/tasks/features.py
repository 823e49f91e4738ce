"""Features of a frozen backbone for a whole data set, computed once and shared by evaluations and linear probes.

A file is named by what its features depend on: weights, images, view, normalisation, precision, layer. Other weights or
images therefore use another file. Names of folders and of weight files do not matter.

Legend: N images, D width, L patches of an image.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from mae_transfer.config import Schema
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides
from mae_transfer.data import (
    Crops,
    EvalKeys,
    LabelledDataConfig,
    Samples,
    SetConfig,
    Source,
    Unreadable,
    UnreadableImage,
    batches,
    evaluation_views,
)
from mae_transfer.data.sources import digest_of_times, fingerprint, whole_of
from mae_transfer.engine.dist import Dist, agree, on_all
from mae_transfer.engine.state import Precision, RunConfig, autocast
from mae_transfer.interfaces import Backbone, FeatureBatch, Features
from mae_transfer.models.heads import NO_CLASS_TOKEN, FrozenPool, Pooled, pool, taps_of
from mae_transfer.record import software
from mae_transfer.tasks.backbones import LoadedBackbone
from mae_transfer.tasks.cached import compute_once
from mae_transfer.tasks.config import RunnableConfig
from mae_transfer.tasks.sweep import EVALUATION_SEED, workers_of

_LOG = logging.getLogger(__name__)
FORMAT = "2"
PLAIN = (bool, int, float, str, Schema)
OWN = {*vars(nn.Module()), "pretrained_cfg", "default_cfg"}  # no architecture: torch's own, and where weights come from
UNREAD = -1  # label of an image that could not be read


class FrozenPass(NamedTuple):
    """One pass of a frozen backbone over a data set: everything that its features depend on, and who computes them."""

    backbone: Backbone  # on the device, in eval mode
    statistics: Statistics  # to normalise the images with
    samples: Samples[Any, Any]  # batches with `image` (B, 3, H, W) uint8 and `index`
    images: SetConfig  # the data set of the samples
    size: int | tuple[int, int]  # pixels of an image
    view: str  # how an image becomes a view of this size, in words
    precision: Precision
    run: RunConfig  # run.features names the folder
    dist: Dist


def labelled_pass(
    cfg: RunnableConfig, data: LabelledDataConfig, backbone: LoadedBackbone, source: Source, part: str, dist: Dist,
    *, shorter_side: float,
) -> FrozenPass:  # fmt: skip
    """Return the pass over labelled images of a part, "train" or "val", that are cropped as in evaluation."""
    images = data.train if part == "train" or data.val is None else data.val
    views = evaluation_views(data, shorter_side=shorter_side)
    samples = Crops(source=source, augmentation=views, seed=EVALUATION_SEED)
    view = f"resized to cover {shorter_side:g} times that (bicubic), centre crop"
    return FrozenPass(
        backbone.model, backbone.statistics, samples, images, data.size, view, cfg.precision, cfg.run, dist
    )


def pooled_features(
    one: FrozenPass, how: FrozenPool, *, unreadable: Unreadable, tick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Return one row per image, (N,), memory-mapped. Every rank calls it and gets all rows.

    Fields: "cls" float32, the class tokens that `how` needs, at least that of the last block, if there is one; "mean"
    (D,) float32, the mean of the patch tokens; "label" int32, UNREAD for an image that could not be read. `select`
    returns what `how` names. All pools with the same number of blocks share one pass.

    Args:
        unreadable: the policy for unreadable files. It records those among this rank's consecutive share of images.
        tick: called after each batch that is computed.
    Raises:
        ValueError: the file of the features is damaged or belongs to other features.
        OSError: it cannot be written.
    """
    samples, device, size = one.samples, one.dist.device, one.run.evaluation_batch
    blocks, taps = max(1, Pooled.of(how).blocks), taps_of(one.backbone, (how,))
    policy = Unreadable(limit=unreadable.limit)

    @torch.no_grad()
    def forward(images: Tensor) -> dict[str, np.ndarray]:
        with autocast(one.precision, device):
            features = one.backbone(normalize(images.to(device), one.statistics), taps=taps, norm=True)
            found = {"mean": pool(features, "mean")}
            if features.cls is not None:
                found = {"cls": pool(features, f"cls-{blocks}" if blocks > 1 else "cls"), **found}
            return {name: value.numpy(force=True) for name, value in found.items()}

    def compute(images: range) -> np.ndarray:
        rows = np.zeros(len(images), row)
        rows["label"] = UNREAD
        keys = EvalKeys(images=len(images), batch=size, first=images.start)
        for batch in batches(samples, keys, workers=workers_of(one.run), unreadable=policy):
            at = batch.index.numpy() - images.start
            for name, values in forward(batch.image).items():
                rows[name][at] = values
            rows["label"][at] = batch.label.numpy()
            tick()
        return rows

    example = forward(torch.zeros(1, 3, *sides(one.size), dtype=torch.uint8))
    fields = [(name, value.dtype, value.shape[1:]) for name, value in example.items()]
    row = np.dtype([*fields, ("label", np.int32)])
    what = f"class tokens of the last {blocks} block(s) and mean of the patch tokens, final norm"
    return kept_rows(one, "features", what, row, compute, unreadable, batch=size)


def select(rows: np.ndarray, how: FrozenPool, images: np.ndarray) -> np.ndarray:
    """Return what `how` names of some images, (n, E) float32. ValueError if there is no class token.

    Args:
        rows: of `pooled_features`.
        images: (N,) bool.
    """
    blocks, mean = Pooled.of(how)
    names = ["cls"] * (blocks > 0) + ["mean"] * mean
    if not {*names} <= {*(rows.dtype.names or ())}:
        raise ValueError(NO_CLASS_TOKEN)
    return np.concatenate([rows[name][images] for name in names], axis=1)


class KeptRows:
    """The rows of a source's images, of those of a larger set. Each process maps the file into its memory."""

    def __init__(self, rows: np.ndarray, source: Source, whole: Source) -> None:
        """Select the rows.

        Args:
            rows: (N,) of `pooled_features`, of the images of `whole`.
            source: images of `whole`.
        """
        (_, wanted), (_, found) = whole_of(source), whole_of(whole)
        order = np.argsort(found)
        self.at, self.images = order[np.searchsorted(found, wanted, sorter=order)], source
        self.rows: np.ndarray | None = rows
        self.path = rows.filename  # type: ignore[attr-defined]  # of a memory-mapped array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}  # pickling would copy the array; each worker maps the file itself

    def __len__(self) -> int:
        return len(self.at)

    def read(self, index: int) -> np.void:
        """Return the row of an image. UnreadableImage if it could not be read."""
        if self.rows is None:
            self.rows = np.load(self.path, mmap_mode="r")
        row: np.void = self.rows[self.at[index]]
        if row["label"] == UNREAD:
            raise UnreadableImage(f"{self.images.where(index)} could not be read when {self.path} was computed")
        return row


@dataclass(frozen=True, kw_only=True)
class KeptFeatures(Samples[np.void, np.void]):
    """Rows of kept features, as Features from which `pool` takes what they were computed for."""

    source: KeptRows
    blocks: int  # number of last blocks whose class tokens they have

    def draw(self, sample: np.void, rng: np.random.Generator) -> np.void:
        """Return the row: nothing is drawn."""
        return sample

    def collate(self, drawn: list[np.void], images: Tensor) -> FeatureBatch:
        """Return the rows as a batch. The map of an image is the mean of its patch tokens, (D, 1, 1)."""
        rows = np.stack(drawn)
        fields = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in rows.dtype.names or ()}
        tokens = fields["cls"].chunk(self.blocks, dim=1) if "cls" in fields else ()
        features = Features((fields["mean"][:, :, None, None],), tokens[-1] if tokens else None, tokens)
        return FeatureBatch(features, fields["label"].long(), images)


def kept_rows(
    one: FrozenPass,
    kind: str,
    what: str,
    row: np.dtype[Any],
    compute: Callable[[range], np.ndarray],
    unreadable: Unreadable,
    *,
    batch: int,
) -> np.ndarray:
    """Return one row per image, (N,), memory-mapped from the folder run.features. Every rank calls it.

    Args:
        kind: beginning of the file's name.
        what: what a row depends on beside the pass, in words.
        row: type of a row. Its field "label" is UNREAD for an image that could not be read.
        compute: (range of images) -> their rows. Parts begin at multiples of `batch`.
        unreadable: as in `pooled_features`.
    Raises:
        ValueError, OSError: as `pooled_features`.
    """
    assert one.run.features is not None
    about = agree(lambda: _about(one, what), one.dist)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path, length = Path(one.run.features).expanduser() / f"{kind}_{digest}.npy", len(one.samples.source)
    compute_once(path, compute, one.dist, images=length, row=row, batch=batch, about=about)
    rows: np.ndarray = np.load(path, mmap_mode="r")
    on_all(one.dist, lambda: _note_unread(rows, path, one, unreadable))
    return rows


def _note_unread(rows: np.ndarray, path: Path, one: FrozenPass, policy: Unreadable) -> None:
    """Warn of unreadable images, and record those of this rank's share.

    Raises:
        UnreadableImage: names one that the policy does not accept.
    """
    unread = np.flatnonzero(rows["label"] == UNREAD)
    if len(unread) and one.dist.is_main:
        first = one.samples.source.where(unread[0].item())  # type: ignore[attr-defined]
        message = "%d images could not be read when %s was computed, first %s; delete %s to read them again"
        _LOG.warning(message, len(unread), path, first, path)
    start, stop = share(len(rows), one.dist)
    for index in unread[(unread >= start) & (unread < stop)]:
        where = one.samples.source.where(index.item())  # type: ignore[attr-defined]
        policy.files[index.item()] = f"{where} could not be read"
        if len(policy.files) > policy.limit:
            raise UnreadableImage(
                f"{where} could not be read when {path} was computed: repair it and delete that file, or set "
                f"data.on_error='skip' and data.max_unreadable above {policy.limit}"
            )


def share(images: int, dist: Dist) -> tuple[int, int]:
    """Return where the consecutive share of a rank starts and ends."""
    return images * dist.rank // dist.world, images * (dist.rank + 1) // dist.world


def _about(one: FrozenPass, what: str) -> dict[str, str]:
    """Return what the features depend on, in words."""
    _, indices = whole_of(one.samples.source)
    made, print_ = software(), fingerprint(one.samples.source)
    options = {key: value for key, value in one.images.model_dump().items() if key != "root"}
    chosen = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()[:16]
    return {
        "format": FORMAT,
        "versions": f"mae_transfer {made.version}, timm {made.packages.get('timm')}",
        "features": what,
        "backbone": one.backbone.name(),
        "weights": digest_of_module(one.backbone),
        "set": TypeAdapter(dict[str, Any]).dump_json(options).decode(),
        "images": f"{len(indices)} of {print_.samples}, fingerprint {print_.digest}, selection {chosen}, "
        f"modification times {digest_of_times(one.samples.source)}",
        "view": f"{sides(one.size)} px, {one.view}",
        "normalisation": f"mean {one.statistics.mean}, std {one.statistics.std}",
        "precision": one.precision,
    }


def digest_of_module(module: nn.Module) -> str:
    """Return the sha256 of a module: its tensors, and the types and attributes of its parts."""
    found = hashlib.sha256()
    for name, part in module.named_modules():
        known = {key: _described(value) for key, value in vars(part).items() if key not in OWN}
        found.update(f"{name} {type(part).__qualname__} {sorted(known.items())}\n".encode())
    for name, tensor in (module.state_dict() | dict(module.named_buffers())).items():  # also buffers that are not saved
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _described(value: object) -> str:
    """Return an attribute in words that are the same in every process: no addresses of objects."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} {[_described(one) for one in value]}"
    if isinstance(value, dict):
        return f"dict {[(_described(key), _described(one)) for key, one in value.items()]}"
    if isinstance(value, partial):
        return f"partial {_described(value.func)} {_described(value.args)} {_described(value.keywords)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))
