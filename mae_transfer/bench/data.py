"""The benchmark `data`: images per second on one core of our input pipeline and a classic PIL + torchvision pipeline.

With a GPU (`time_feeds`): images per second of the whole training input, workers included.

With `multi_crop`, an image becomes 12 views instead of one crop: DINO's 2 of 224 px and 10 of 96 px, with its colours.
With `augmented`, its crop is that of fine-tuning, with RandAugment.

Both start from the bytes of JPEG files in memory, except the rows that name files or a pack. They end with a batch for
the device: ours in uint8 (normalised on the device), the classic one in normalised float32. They alternate, round by
round, in one process pinned to one core. Times are processor time, so other programs have little effect. The same seeds
give the same crops.
"""

from __future__ import annotations

import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as classic

from mae_transfer.bench.harness import stopwatch
from mae_transfer.data.config import DataConfig, training_crops
from mae_transfer.data.crops import MultiCrop, MultiCrops
from mae_transfer.data.decode import Undecoded, decode, decode_late
from mae_transfer.data.folders import FolderConfig
from mae_transfer.data.loader import Crops, Key, Order, TrainKeys, batches
from mae_transfer.data.packs import write_pack
from mae_transfer.data.rand_augment import rand_augment
from mae_transfer.data.sources import UNLABELLED, Sample, Source, decoded_late
from mae_transfer.data.transforms import RandAugmentCrop, RandomCrop
from mae_transfer.interfaces import ViewSpec
from mae_transfer.seeding import fold, seeded

BATCH = 16
CLASSIC = "classic: PIL, v1 transforms, float"
LATE, WHOLE = "ours, decoded at the crop", "ours, whole images decoded"
VIEWS = MultiCrop(narrow=10, wide_scale=(0.25, 1.0), narrow_scale=(0.05, 0.25))  # the released DINO models
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

Files = Sequence[bytes]
Pipeline = Callable[[range, int], Tensor]  # images, round -> (B, 3, S, S), with several views the first of them


def run(
    folder: str | Path,
    *,
    seconds: float = 60.0,
    size: int = 224,
    rounds: int = 15,
    images: int = 200,
    repeats: int = 4,
    multi_crop: bool = False,
    augmented: bool = False,
) -> list[dict[str, Any]]:
    """Time the pipelines on up to `images` files of a folder, searched at any depth.

    Args:
        folder: folder of JPEGs.
        seconds: approximate total time of all contestants and rounds.
        size: pixels per side of a crop.
        rounds: turns of each contestant; medians and ranges are over rounds.
        images: most files to read.
        repeats: crops per decoded image of the contestant with repeated crops.
        multi_crop: make 12 views of each image instead of one crop of `size` pixels.
        augmented: make fine-tuning crops, with RandAugment.
    Returns:
        One dict per contestant: name, counted (False: other work, listed for comparison), images_per_s, low, high,
        ratio to the classic pipeline (median over rounds) and pixel_difference (mean absolute difference from the
        classic crops in grey levels; None if not measured).
    """
    source = FolderConfig(root=str(folder), labelled=False).open()
    files = [source.file(index) for index in range(min(images, len(source)))]
    with _one_core(), tempfile.TemporaryDirectory() as temporary:
        if multi_crop:
            contestants = _several_views(files)
        elif augmented:
            contestants = _augmented_crops(files, size)
        else:
            contestants = _one_crop(files, size, repeats, Path(temporary))
        share = seconds / (rounds * len(contestants))
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(rounds):
            for name, pipeline in contestants.items():
                speeds[name].append(_speed(pipeline, len(files), turn, share))
    reference, *_ = speeds.values()
    _, ours, *_ = speeds
    difference = None if multi_crop or augmented else pixel_difference(files, size)
    return [
        _row(name, values, reference, name in (CLASSIC, ours), difference if name == ours else None)
        for name, values in speeds.items()
    ]


def time_feeds(
    folder: str | Path, device: torch.device, *, workers: int, seconds: float, size: int = 224, batch: int = 256
) -> list[dict[str, Any]]:
    """Time the loader of a pretraining until its crops are on the device, decoded by the workers or by the device.

    Return one dict for each: name, workers, batch, images_per_s (wall time, about half of `seconds` each) or failure.
    """
    source = FolderConfig(root=str(folder), labelled=False).open()
    keys = TrainKeys(order=Order(images=len(source), batch=min(batch, len(source)), seed=0))
    rows: list[dict[str, Any]] = []
    for name, where in (("decoded by the workers", None), ("decoded on the device", device)):
        rows.append({"name": name, "workers": workers, "batch": keys.order.batch})
        try:
            crops = training_crops(DataConfig(size=size), source, seed=0, decode_on=where)
        except ValueError as error:  # no decoder for the device
            rows[-1]["failure"] = str(error)
            continue
        with closing(batches(crops, keys, workers=workers, pin=device.type == "cuda")) as feed:
            on_device = (batch.image.to(device, non_blocking=True) for batch in feed)
            for _ in range(1 + workers):  # the workers start
                next(on_device)
            count, start = 0, time.perf_counter()
            with stopwatch(str(device)) as elapsed:
                while time.perf_counter() - start < seconds / 2:
                    count += len(next(on_device))
        rows[-1]["images_per_s"] = count / elapsed[0].wall
    return rows


def _one_crop(files: Files, size: int, repeats: int, folder: Path) -> dict[str, Pipeline]:
    """Return the contestants, the classic one and ours first; `folder` takes the files and their pack."""
    (folder / "files").mkdir()
    for index, file in enumerate(files):
        (folder / "files" / f"{index:08}.jpg").write_bytes(file)
    write_pack(folder / "files", folder / "files.zip")
    ours, left = _name(files), decoded_late(_Bytes(files), leave=True)
    sources: dict[str, Source] = {
        ours: _Bytes(files),
        f"{ours}, from files": FolderConfig(root=str(folder / "files"), labelled=False).open(),
        f"{ours}, from a pack": FolderConfig(root=str(folder / "files.zip"), labelled=False).open(),
    }
    on_device = {"ours, decoding left to the device": _Ours(left, size, decode_on=torch.device("cpu"))}
    return {
        CLASSIC: _Classic(files, size),
        **{name: _Ours(decoded_late(one) if ours == LATE else one, size) for name, one in sources.items()},
        WHOLE: _Ours(_Bytes(files), size),
        **(on_device if _undecoded(left) else {}),
        f"ours, {repeats} crops per image": _Ours(_Bytes(files), size, repeats),
        "PIL, v1 transforms, uint8": _Classic(files, size, normalise=False),
        "PIL draft decoding (approximate)": _Classic(files, size, draft=True),
    }


def _augmented_crops(files: Files, size: int) -> dict[str, Pipeline]:
    return {
        CLASSIC: _Classic(files, size, policy=RandAugmentCrop().policy),
        _name(files): partial(_our_augmented, files, size, augment_on="worker"),
        "ours, RandAugment left to the device": partial(_our_augmented, files, size, augment_on="device"),
    }


def _several_views(files: Files) -> dict[str, Pipeline]:
    return {
        CLASSIC: _ClassicViews(files),
        WHOLE: partial(_our_views, files, augment_on="worker"),
        "ours, flips and colours left to the device": partial(_our_views, files, augment_on="device"),
        "PIL, v1 transforms, uint8": _ClassicViews(files, normalise=False),
    }


def _name(files: Files) -> str:
    """Return the name of our pipeline, which says how much of an image this machine decodes."""
    return LATE if _undecoded(decoded_late(_Bytes(files))) else WHOLE


def _undecoded(source: Source) -> bool:
    """Return whether every image of a source is still to be decoded."""
    return all(isinstance(source.read(index).image, Undecoded) for index in range(len(source)))


def pixel_difference(files: Files, size: int) -> float:
    """Return the mean absolute difference in grey levels between our crops and the classic ones, with equal boxes.

    The classic pipeline ignores EXIF rotations; here it applies them first.
    """
    ours = _Ours(decoded_late(_Bytes(files)), size)
    theirs = _Classic(files, size, normalise=False, upright=True)
    each = [range(index, index + 1) for index in range(len(files))]
    gaps = [(ours(image, 0).float() - theirs(image, 0).float()).abs().mean() for image in each]
    return float(torch.stack(gaps).mean())


@dataclass(frozen=True)
class _Bytes:
    """A data set of files in memory."""

    files: Files
    decode: Callable[..., Tensor] = decode
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        return Sample(self.decode(self.files[index], where=self.where(index)), UNLABELLED)

    def decoded_late(self, *, leave: bool = False) -> _Bytes:
        return replace(self, decode=partial(decode_late, leave=leave))

    def where(self, index: int) -> str:
        return f"file {index}"


class _Ours:
    """The loader's worker code, including seeding; repeats > 1: the same number of crops from fewer files."""

    def __init__(self, source: Source, size: int, repeats: int = 1, *, decode_on: torch.device | None = None) -> None:
        views = RandomCrop().build([ViewSpec(size, "bicubic")])
        self.crops = Crops(source=source, augmentation=views, seed=0, decode_on=decode_on)
        self.repeats = repeats

    def __call__(self, images: range, turn: int) -> Tensor:
        keys = [Key(turn, images.start + i // self.repeats, i % self.repeats) for i in range(len(images))]
        crops: Tensor = self.crops[keys].batch.image
        return crops


class _Classic:
    """PIL, torchvision v1 and a float batch, as in most training scripts; its crops use the same seeds as ours.

    policy: of timm's RandAugment, with the crop of fine-tuning.
    """

    def __init__(
        self,
        files: Files,
        size: int,
        *,
        normalise: bool = True,
        draft: bool = False,
        upright: bool = False,
        policy: str | None = None,
    ) -> None:
        ending = [classic.ToTensor(), classic.Normalize(MEAN, STD)] if normalise else [classic.PILToTensor()]
        least = 0.08 if policy else 0.2
        crop = classic.RandomResizedCrop(size, (least, 1.0), interpolation=classic.InterpolationMode.BICUBIC)
        augment = [rand_augment(policy, MEAN, size)] if policy else []
        self.transform = classic.Compose([crop, classic.RandomHorizontalFlip(), *augment, *ending])
        self.files, self.upright = files, upright
        # Smallest size after decoding: a crop of a quarter of the area keeps its detail.
        self.draft = (2 * size, 2 * size) if draft else None

    def __call__(self, images: range, turn: int) -> Tensor:
        return torch.stack([self._crop(self.files[index], fold(0, "sample", turn, index, 0)) for index in images])

    def _crop(self, file: bytes, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)
        with Image.open(io.BytesIO(file)) as image:
            if self.draft:
                image.draft("RGB", self.draft)
            crop: Tensor = self.transform((ImageOps.exif_transpose(image) if self.upright else image).convert("RGB"))
        return crop


def _our_augmented(
    files: Files, size: int, images: range, turn: int, *, augment_on: Literal["worker", "device"]
) -> Tensor:
    """Return the fine-tuning crops of the loader's worker, with RandAugment or with what the device needs for it."""
    cfg = DataConfig(size=size, augmentation=RandAugmentCrop())
    samples = training_crops(cfg, _Bytes(files), seed=0, augment_on=augment_on)
    crops: Tensor = samples[[Key(turn, index, 0) for index in images]].batch.image
    return crops


def _our_views(files: Files, images: range, turn: int, *, augment_on: Literal["worker", "device"]) -> Tensor:
    """Return the first wide view of each image, after the loader's worker has made all views."""
    samples = MultiCrops(source=_Bytes(files), crops=VIEWS, size=224, seed=0, augment_on=augment_on)
    views: Tensor = samples[[Key(turn, index, 0) for index in images]].batch.wide
    return views[0]


class _ClassicViews:
    """The views of main_dino.py (DINO) with PIL and torchvision v1, as one batch per view."""

    def __init__(self, files: Files, *, normalise: bool = True) -> None:
        self.files = files
        self.ending = [classic.ToTensor(), classic.Normalize(MEAN, STD)] if normalise else [classic.PILToTensor()]
        sides, scales = (224, VIEWS.narrow_size), (VIEWS.wide_scale, VIEWS.narrow_scale)
        kinds = (0, 1, *[2] * VIEWS.narrow)
        self.transforms = [self._view(sides[kind == 2], scales[kind == 2], kind) for kind in kinds]

    def _view(self, size: Any, scale: tuple[float, float], kind: int) -> Any:
        crop = classic.RandomResizedCrop(size, scale, interpolation=classic.InterpolationMode.BICUBIC)
        jitter = classic.RandomApply([classic.ColorJitter(*VIEWS.jitter)], VIEWS.jitter_share)
        blur = classic.RandomApply([classic.Lambda(_pil_blur)], VIEWS.blur[kind])
        solarise = classic.RandomSolarize(128, VIEWS.solarise[kind])
        colours = [classic.RandomHorizontalFlip(), jitter, classic.RandomGrayscale(VIEWS.grey), blur, solarise]
        return classic.Compose([crop, *colours, *self.ending])

    def __call__(self, images: range, turn: int) -> Tensor:
        rows = [self._views(self.files[index], fold(0, "sample", turn, index, 0)) for index in images]
        first, *_ = [torch.stack(views) for views in zip(*rows, strict=True)]
        return first

    def _views(self, file: bytes, seed: int) -> list[Tensor]:
        torch.default_generator.manual_seed(seed)
        with Image.open(io.BytesIO(file)) as image:
            pixels = image.convert("RGB")
        return [transform(pixels) for transform in self.transforms]


def _pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*VIEWS.sigma)))


def _speed(pipeline: Pipeline, count: int, turn: int, seconds: float) -> float:
    """Return images per second of processor time over at least `seconds`, each call on the next batch of images."""
    done, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds or not done:
        first = done % max(1, count - BATCH + 1)
        images = range(first, min(first + BATCH, count))
        pipeline(images, turn)
        done += len(images)
    return done / elapsed


def _row(
    name: str, speeds: list[float], reference: list[float], counted: bool, difference: float | None
) -> dict[str, Any]:
    ratio = statistics.median(speed / other for speed, other in zip(speeds, reference, strict=True))
    values = {"images_per_s": statistics.median(speeds), "low": min(speeds), "high": max(speeds), "ratio": ratio}
    return {"name": name, "counted": counted, **values, "pixel_difference": difference}


@contextmanager
def _one_core() -> Iterator[None]:
    """Pin the process to one core, if the system supports it, and torch to one thread."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(1)
    if cores is not None:
        os.sched_setaffinity(0, {max(cores)})
    try:
        with seeded(0):
            yield
    finally:
        torch.set_num_threads(threads)
        if cores is not None:
            os.sched_setaffinity(0, cores)
