"""Segmentation by the patch features of a frozen backbone: votes of similar patches, or logistic regression.

The protocol is that of CAPI (arXiv 2502.08769; facebookresearch/capi, eval_segmentation.py): images are resized to one
size, patches of training images have the most frequent value of their pixels as label, features are standardised, and a
constant is selected by the mIoU of held-out training images. Other than there, the training patches are a sample, votes
have weights, patch scores are upsampled, and pixels are judged at the size of the stored map, as for UperNet.

Legend: P patches of an image on a grid of h x w, N patches of the bank, D width, C classes, V values of a constant,
H x W pixels of a stored map.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count, islice
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mae_transfer.bounds import Between, Count, Factor, Positive
from mae_transfer.core.normalize import normalize
from mae_transfer.core.patches import grid_of, sides
from mae_transfer.data import EvalKeys, Unreadable, batches
from mae_transfer.data.checks import check_maps
from mae_transfer.data.config import check_same_classes
from mae_transfer.data.maps import MapViews, ResizedMapsConfig, ScaledViews, open_map_set
from mae_transfer.data.transforms import resize
from mae_transfer.engine.dist import Dist, agree, on_main
from mae_transfer.engine.log import Logger
from mae_transfer.engine.state import autocast
from mae_transfer.interfaces import IGNORED
from mae_transfer.metrics.features import check_finite
from mae_transfer.metrics.iou import IouMetric
from mae_transfer.metrics.knn import knn_scores
from mae_transfer.metrics.logreg import fit_path
from mae_transfer.results import Result
from mae_transfer.seeding import fold
from mae_transfer.tasks.dense import SET_NAMES, PicturesRun, main_figures
from mae_transfer.tasks.evaluation import CHOSEN, NO_IMAGE, EvaluationConfig, FrozenConfig, FrozenRun
from mae_transfer.tasks.features import UNREAD, FrozenPass, kept_rows
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.segment import class_lines, compute_iou, draw_segmentation
from mae_transfer.tasks.segment_inference import resized
from mae_transfer.tasks.sweep import EVALUATION_SEED, gather, unread, workers_of
from mae_transfer.tasks.workdir import WorkDir

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
Scores = Callable[[Tensor], Tensor]
"""Turns standardised features (n, D) into scores for each value, (V, n, C)."""


class Patches(NamedTuple):
    """Labelled patches."""

    features: Tensor  # (N, D) float32, on the device
    labels: Tensor  # (N,) int64, each a class
    images: Tensor  # (N,) int64, index of each patch's image


class FrozenSegmentConfig(FrozenConfig):
    """Segmentation with a frozen backbone. Each classifier of patches adds its own options."""

    family: ClassVar[str] = "segment"
    debug: ClassVar[dict[str, Any]] = {
        **EvaluationConfig.debug,
        "data.train": {"name": "shapes", "length": 1, "size": 48},
        "data.val": {"name": "shapes", "length": 1, "size": 48, "seed": 1},
        "run": {**EvaluationConfig.debug["run"], "pictures": 1},
    }

    data: ResizedMapsConfig = ResizedMapsConfig()
    """Images with class maps: those of `val` are segmented with the help of those of `train`."""
    bank: Count = 500_000
    """Training patches to use at most, as many of each image, drawn at random from those with a class. They need 4
    bytes x width each on every device (1.5 GB for ViT-B), three times as much during the evaluation."""
    selection_fraction: Between = 0.1
    """Share of the training images to choose a constant on, by the mIoU of their patches. All are used afterwards."""
    run: PicturesRun = PicturesRun()
    """Execution options. They change numbers by rounding, or by other random draws of the same kind."""

    @property
    @abstractmethod
    def constant(self) -> tuple[str, Sequence[float]]:
        """The name of the constant that is selected, and its values. The first of equally good ones is chosen."""

    @abstractmethod
    def fit(self, bank: Patches, values: Sequence[float], classes: int) -> Scores:
        """Return the classifier of patches for each of these values; ValueError if the patches do not suffice."""


class FrozenKnnConfig(FrozenSegmentConfig):
    """Segmentation by weighted votes of the most similar training patches."""

    debug: ClassVar[dict[str, Any]] = {**FrozenSegmentConfig.debug, "ks": (1,)}

    task: Literal["frozen-knn"] = "frozen-knn"
    """Which task the file configures."""
    ks: tuple[Count, ...] = Field(default=(1, 3, 10, 30), min_length=1)
    """Numbers of neighbours to choose from (CAPI's)."""
    temperature: Factor = 0.07
    """Temperature of the votes, exp(cosine / temperature)."""

    @property
    def constant(self) -> tuple[str, Sequence[float]]:
        return "k", self.ks

    def fit(self, bank: Patches, values: Sequence[float], classes: int) -> Scores:
        ks = [round(value) for value in values]
        if max(ks) > len(bank.labels):
            raise ValueError(
                f"ks = {self.ks}: only {len(bank.labels)} training patches can vote, fewer than {max(ks)} neighbours; "
                "lower ks, or raise bank"
            )

        def scores(features: Tensor) -> Tensor:
            votes = knn_scores(
                features, bank.features, bank.labels, classes=classes, ks=ks, temperature=self.temperature
            ).clamp(min=0)  # -inf of a class without votes
            return votes / votes.sum(dim=2, keepdim=True)

        return scores


class FrozenLogRegConfig(FrozenSegmentConfig):
    """Segmentation by logistic regression of patches."""

    debug: ClassVar[dict[str, Any]] = {**FrozenSegmentConfig.debug, "cs": (1.0,)}

    task: Literal["frozen-logreg"] = "frozen-logreg"
    """Which task the file configures."""
    cs: tuple[Positive, ...] = Field(default=CS, min_length=1)
    """Values of scikit-learn's C to choose from, from small to large: weights of the summed cross-entropy of patches
    against half the squared weights."""

    @property
    def constant(self) -> tuple[str, Sequence[float]]:
        return "c", self.cs

    def fit(self, bank: Patches, values: Sequence[float], classes: int) -> Scores:
        models = fit_path(bank.features, bank.labels, classes=classes, cs=values)
        return lambda features: torch.stack([model(features) for model in models])


class FrozenSegment(FrozenRun[FrozenSegmentConfig]):
    """Segmentation by the patch features of a frozen backbone."""

    mean: Tensor  # (D,) of the bank's features, from `evaluate` on
    scale: Tensor  # (D,) their standard deviation
    scores: Scores  # of the chosen constant

    def __init__(self, cfg: FrozenSegmentConfig, dist: Dist) -> None:
        super().__init__(cfg, dist)
        self.batch = 1  # stored images differ in size; and so the features depend on no other image

    def open(self) -> None:
        cfg = self.cfg
        self.sources = {part: open_map_set(getattr(cfg.data, part), cfg.data.root) for part in ("train", "val")}
        train, val = self.sources.values()
        check_same_classes(train.classes, val.classes)
        self.check_processes()
        if cfg.bank < len(train):
            raise ValueError(
                f"bank = {cfg.bank} is less than a patch of each of {len(train)} training images: raise it"
            )
        self.load_backbone(cfg.data.size)
        self.grid = grid_of(sides(cfg.data.size), self.backbone.model.maps().strides[-1])
        self.per_image = min(cfg.bank // len(train), math.prod(self.grid))  # patches to draw
        sets = {SET_NAMES[part]: source for part, source in self.sources.items()}
        on_main(self.dist, partial(check_maps, sets, skip=cfg.data.unreadable().limit))

    def views(self, part: str) -> MapViews:
        """Return the images of a part, resized."""
        view = partial(resized_view, size=sides(self.cfg.data.size))
        return MapViews(source=self.sources[part], seed=EVALUATION_SEED, transform=view)

    def features(self, batch: ScaledViews) -> Tensor:
        """Return the features of an image, (P, D) float32."""
        with autocast(self.cfg.precision, self.dist.device):
            found = self.backbone.model(normalize(batch.images[0], self.backbone.statistics), norm=True).maps[-1]
        if found.shape[2:] != self.grid:
            raise ValueError(
                f"{self.backbone.name} gives features of shape {tuple(found.shape)} for {self.cfg.data.size} pixels, "
                f"but a grid of {self.grid[0]}x{self.grid[1]} patches is needed: use another backbone"
            )
        return found[0].flatten(1).T.float()

    def draw(self, batch: ScaledViews) -> Patches:
        """Return patches with a class of a training image."""
        cfg, classes = self.cfg, len(self.sources["train"].classes)
        labels = patch_labels(batch.labels, self.grid, sides(cfg.data.size), classes=classes)
        image = int(batch.index[0])
        drawn = draw_patches(labels, self.per_image, seed=fold(cfg.seed, "patches", image))
        return Patches(self.features(batch)[drawn], labels[drawn], torch.full_like(drawn, image))

    def collect(self, policy: Unreadable, tick: Callable[[], None]) -> Patches:
        """Return the bank: patches of all training images, in their order, on every rank.

        Raises:
            ValueError: no patch has a class, or a feature is not finite.
        """
        bank = self.kept(policy, tick) if self.cfg.run.features is not None else self.drawn(policy, tick)
        if not len(bank.labels):
            raise ValueError(
                "most pixels of every training patch have no class (tools/prepare_data.py check examines the maps)"
            )
        check_finite(bank.features, of="training patch")
        return bank

    def drawn(self, policy: Unreadable, tick: Callable[[], None]) -> Patches:
        """Return the bank from one pass over the training images."""
        found: list[Patches] = []
        for batch in self.sweep(self.views("train"), policy, batch=1):
            found.append(self.draw(batch))
            tick()
        if not found:
            raise ValueError(NO_IMAGE)
        return Patches(*(gather(torch.cat(parts), self.dist) for parts in zip(*found, strict=True)))

    def kept(self, policy: Unreadable, tick: Callable[[], None]) -> Patches:
        """Return the bank from the folder run.features, where it is kept for other runs."""
        cfg, device, samples = self.cfg, self.dist.device, self.views("train")
        width = self.backbone.model.maps().channels[-1]
        most = self.per_image
        row = np.dtype([
            ("features", np.float32, (most, width)), ("labels", np.int64, (most,)), ("label", np.int32),
        ])  # fmt: skip

        def compute(images: range) -> np.ndarray:
            rows = np.zeros(len(images), row)
            rows["labels"], rows["label"] = IGNORED, UNREAD
            keys = EvalKeys(images=len(images), batch=1, first=images.start)
            accepted = Unreadable(limit=policy.limit)
            for batch in batches(samples, keys, workers=workers_of(cfg.run), unreadable=accepted):
                found = self.draw(batch.to(device))
                one, drawn = rows[int(batch.index[0]) - images.start], len(found.labels)
                one["features"][:drawn], one["labels"][:drawn] = found.features.cpu(), found.labels.cpu()
                one["label"] = 0
                tick()
            return rows

        what = (
            f"{most} patches per image with one of {len(samples.source.classes)} classes, drawn with seed "
            f"{cfg.seed}, last map, final norm"
        )
        one = FrozenPass(
            self.backbone.model, self.backbone.statistics, samples, cfg.data.train, cfg.data.size, "resized (bicubic)",
            cfg.precision, cfg.run, self.dist,
        )  # fmt: skip
        rows = kept_rows(one, "patches", what, row, compute, policy, batch=1)
        images, at = np.nonzero(rows["labels"] != IGNORED)
        found = (rows["features"][images, at], rows["labels"][images, at], images)
        return Patches(*(torch.from_numpy(array).to(device) for array in found))

    def evaluate(self, log: Logger) -> tuple[dict[str, float], int]:
        cfg, val, policies = self.cfg, self.sources["val"], [self.cfg.data.unreadable() for _ in range(2)]
        steps = count(1)
        bank = self.collect(policies[0], lambda: log.tick(next(steps)))
        std, self.mean = torch.std_mean(bank.features, dim=0, correction=0)
        self.scale = std.clamp(min=1e-6 * std.max().clamp(min=torch.finfo(std.dtype).tiny))  # constant channels
        bank.features.sub_(self.mean).div_(self.scale)
        found = choose_value(cfg, bank, val.classes)
        value, held_out = agree(lambda: found, self.dist)
        self.scores = cfg.fit(bank, [value], len(val.classes))
        metric = IouMetric(val.classes, device=self.dist.device)
        for batch in self.sweep(self.views("val"), policies[1], batch=1):
            features = self.features(batch)
            check_finite(features, of="validation patch")
            metric.update(self.predict(features, batch), batch.labels)
            log.tick(next(steps))
        figures = compute_iou(metric, of=SET_NAMES["val"])
        log.say(class_lines(figures, val.classes))
        unreadable = sum(unread(policy, self.dist).get("unreadable", 0) for policy in policies)
        chosen = {f"{HOLDOUT}patch-mIoU": held_out, f"{CHOSEN}{cfg.constant[0]}": value}
        return main_figures(figures | chosen), round(unreadable)

    def predict(self, features: Tensor, batch: ScaledViews) -> Tensor:
        """Return the class of each pixel of the stored map, (1, H, W), for features (P, D)."""
        height, width = batch.labels.shape[-2:]
        scores = self.scores((features - self.mean) / self.scale)[0]
        return resized(scores.T.reshape(1, -1, *self.grid), (height, width)).argmax(dim=1)

    def pictures(self, folder: WorkDir) -> None:
        cases = self.sweep(self.views("val"), self.cfg.data.unreadable(), batch=1, alone=True)
        for number, batch in enumerate(islice(cases, self.cfg.run.pictures)):
            predicted = self.predict(self.features(batch), batch)
            draw_segmentation(folder.segmentations / f"{number:04d}.png", self.sources["val"], batch, predicted)

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        return super().results({name: value for name, value in figures.items() if not name.startswith(CHOSEN)}, shared)


def resized_view(image: Tensor, *, size: tuple[int, int]) -> tuple[Tensor]:
    """Return an image (3, H, W) uint8 resized to one size, whatever its aspect ratio."""
    return (resize(image, size, "bicubic"),)


def patch_labels(labels: Tensor, grid: tuple[int, int], size: tuple[int, int], *, classes: int) -> Tensor:
    """Return the most frequent value of each patch's pixels, (P,) int64: a class, or IGNORED. The first of equal ones.

    Args:
        labels: (1, H, W), a class or IGNORED.
        size: pixels of the image that the backbone sees, to which the map is resized (nearest neighbour).
    """
    (h, w), (high, wide) = grid, size
    seen = F.interpolate(labels[None].float(), size=size, mode="nearest-exact").long()
    pixels = seen.view(h, high // h, w, wide // w).transpose(1, 2).flatten(2).flatten(0, 1)
    values = pixels.clamp(max=classes)  # IGNORED comes last
    counts = torch.zeros(len(values), classes + 1, device=values.device).scatter_add_(
        1, values, torch.ones_like(values, dtype=torch.float32)
    )
    found = counts.argmax(dim=1)
    return found.where(found < classes, IGNORED)


def draw_patches(labels: Tensor, most: int, *, seed: int) -> Tensor:
    """Return the indices of at most `most` patches with a class, in random order."""
    known = np.flatnonzero(labels.numpy(force=True) != IGNORED)
    return torch.from_numpy(np.random.default_rng(seed).permutation(known)[:most]).to(labels.device)


def choose_value(cfg: FrozenSegmentConfig, bank: Patches, classes: Sequence[str]) -> tuple[float, float]:
    """Return the value with the best mIoU of the patches of held-out images, and this mIoU; NaN if there is one value.

    Raises:
        ValueError: the patches are of one image.
    """
    name, values = cfg.constant
    if len(values) == 1:
        return values[0], float("nan")
    images = bank.images.unique()
    if len(images) < 2:
        raise ValueError(f"no training image can be held out to select {name}: give one value, or more images")
    held = min(max(1, round(cfg.selection_fraction * len(images))), len(images) - 1)
    order = np.random.default_rng(fold(0, "hold out")).permutation(len(images))
    chosen = torch.isin(bank.images, images[torch.from_numpy(order[:held]).to(images.device)])
    fitted, selected = (Patches(*(tensor[mask] for tensor in bank)) for mask in (~chosen, chosen))
    found = []
    for scores in cfg.fit(fitted, values, len(classes))(selected.features):
        metric = IouMetric(classes, device=scores.device)
        metric.update(scores.argmax(dim=1), selected.labels)
        found.append(metric.compute()["mIoU"])
    best = max(range(len(values)), key=lambda index: found[index])
    return values[best], found[best]
