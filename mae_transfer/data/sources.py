"""What a data set is: its config, a length and a sample per index; subsets of it, and its fingerprint.

Shares of the labels and hold-outs are drawn per class with a fixed seed that does not depend on the run's seed. So runs
are compared on the same images, and the 1 % subset is part of the 10 % subset.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mae_transfer.config import Part
from mae_transfer.seeding import fold

UNLABELLED = -1
LIST_SEED = 0
CHUNK = 128  # files whose status is read together
THREADS = 16  # that read chunks in parallel if files are slow to reach
SLOW = 50e-6  # seconds per file: on a local disk (5e-6) threads would only wait for the interpreter lock
SHOWN = 3  # names in a message


class Sample(NamedTuple):
    """One stored image, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    label: int | np.ndarray  # index into `classes`, or UNLABELLED; or a precomputed array (PrecomputedLabels)


class Source(Protocol):
    """A data set. Loader workers receive a pickled copy, so it should be small."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names by label; empty if the images are unlabelled."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return sample `index`. UnreadableImage names a file that cannot be decoded."""
        ...

    def where(self, index: int) -> str:
        """Return the path of sample `index`, for messages."""
        ...


@runtime_checkable
class Labelled(Source, Protocol):
    """A data set that can list its labels, so that it can be split by class."""

    def labels(self) -> np.ndarray:
        """Return the label of every sample, (N,) int64, without decoding images if possible."""
        ...


class SetConfig(Part):
    """A data set of a config."""

    @abstractmethod
    def open(self) -> Sized:
        """Return the data set. ValueError names what is missing or broken."""

    def completed(self, options: Mapping[str, Any]) -> Self:
        """Return the set with those of the options that it takes and does not set, or sets to None."""
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        missing = type(self).model_fields.keys() - given
        return self.model_copy(update={name: value for name, value in options.items() if name in missing})


class FolderSetConfig(SetConfig):
    """A data set in a folder."""

    root: str | None = None
    """Folder of the data set. None: `data.root`."""

    @property
    def home(self) -> Path:
        """The folder. ValueError if none is set."""
        if self.root is None:
            raise ValueError(f"the data set {self.name!r} needs a folder: set data.root")
        return Path(self.root).expanduser()


class Subset:
    """The samples `indices` of a source, in this order."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.classes = source, source.classes
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return sample `index` of the subset."""
        return self.source.read(self.indices[index].item())

    def where(self, index: int) -> str:
        """Return the source's name of sample `index`, for messages."""
        return self.source.where(self.indices[index].item())


class LabelledSubset(Subset):
    """A subset whose labels are checked when they are read."""

    def read(self, index: int) -> Sample:
        """Return sample `index` of the subset. ValueError if its label is not one of the classes."""
        sample = super().read(index)
        if not 0 <= sample.label < len(self.classes):
            raise ValueError(
                f"{self.where(index)} has label {sample.label}, but the {len(self.classes)} classes are "
                f"0..{len(self.classes) - 1}: correct its label"
            )
        return sample


class PrecomputedLabels:
    """The images of a source with the rows of a .npy file as labels (tokens). Each process memory-maps the file."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.classes, self.path = source, source.classes, path
        self.rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}  # pickling would copy the array; each worker maps the file itself

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        """Return sample `index` with its row, int64."""
        if self.rows is None:
            self.rows = np.load(self.path, mmap_mode="r")
        return Sample(self.source.read(index).image, self.rows[index].astype(np.int64))

    def where(self, index: int) -> str:
        """Return the source's name of sample `index`, for messages."""
        return self.source.where(index)


def decoded_late(source: Source, *, leave: bool = False) -> Source:
    """Return a source whose images are decoded where they are cropped (decode.Undecoded), as far as it can.

    Args:
        leave: the main process decodes the crops.
    """
    if isinstance(source, Subset | PrecomputedLabels):
        late = copy.copy(source)
        late.source = decoded_late(source.source, leave=leave)
        return late
    return cast(Source, source.decoded_late(leave=leave)) if hasattr(source, "decoded_late") else source


class Split(NamedTuple):
    """A labelled training set and its hold-out."""

    train: Source
    held_out: Source | None  # for selection; None: nothing is held out


def pick_evenly(source: Source, count: int) -> Subset:
    """Return `count` samples spread evenly over a source, because folders are sorted by class; all if it has fewer."""
    count = min(count, len(source))
    return Subset(source, [i * len(source) // count for i in range(count)])


def listed_labels(source: Source) -> np.ndarray | None:
    """Return the labels of a subset without reading it, (N,) int64; None if its source cannot list them."""
    if isinstance(source, Subset) and isinstance(source.source, Labelled):
        return source.source.labels()[source.indices]
    return None


def check_labels(source: Source, *, of: str) -> LabelledSubset:
    """Return all samples of a source, with labels checked when read. ValueError if it has no classes."""
    if not source.classes:
        raise ValueError(f"the {of} set has no classes: classification needs one folder per class (labelled=True)")
    return LabelledSubset(source, range(len(source)))


def split(source: Source, *, label_fraction: float = 1.0, holdout_fraction: float = 0.0) -> Split:
    """Keep `label_fraction` of each class, and hold out `holdout_fraction` of the kept images.

    Each class contributes at least one image to both, but a class with a single image uses it for training.

    Raises:
        ValueError: the source has no classes, cannot list its labels, or is too small for a hold-out.
    """
    all_samples = check_labels(source, of="training")
    if label_fraction == 1.0 and holdout_fraction == 0.0:
        return Split(all_samples, None)
    if not isinstance(source, Labelled):
        raise ValueError(
            f"{type(source).__name__} cannot list its labels: set data.label_fraction=1 and data.holdout_fraction=0"
        )
    labels = source.labels()
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(labels == label)
        if not len(members):
            continue  # a generated source may contain no image of a class
        kept = _share(label_fraction, len(members))
        members = np.random.default_rng(fold(LIST_SEED, "labels", label)).permutation(members)[:kept]
        held = min(_share(holdout_fraction, len(members)), len(members) - 1) if holdout_fraction else 0
        held_out.append(members[:held])
        train.append(members[held:])
    if not holdout_fraction:
        return Split(LabelledSubset(source, np.concatenate(train)), None)
    if not sum(map(len, held_out)):
        cause, remedy = (
            ("each class has one image", "add images")
            if label_fraction == 1
            else (f"label_fraction={label_fraction:g} keeps one image per class", "raise data.label_fraction")
        )
        raise ValueError(
            f"no image can be held out (holdout_fraction={holdout_fraction:g}), because {cause}: {remedy}, or set "
            "data.holdout_fraction=0"
        )
    return Split(*(LabelledSubset(source, np.concatenate(indices)) for indices in (train, held_out)))


def select_part(count: int, part: tuple[float, float]) -> list[int]:
    """Return the sorted indices of the images between two fractions of a fixed random order of `count` images.

    (0.0, 0.9) and (0.9, 1.0) share no image and together contain all: a training set and a hold-out.

    Raises:
        ValueError: `part` is not two ascending fractions from 0 to 1.
    """
    start, end = part
    if not 0 <= start < end <= 1:
        raise ValueError(f"part={part}: give two fractions from 0 to 1, the lower one first")
    order = np.random.default_rng(fold(LIST_SEED, "part")).permutation(count)
    return sorted(order[round(start * count) : round(end * count)].tolist())


def _share(fraction: float, count: int) -> int:
    """Return this fraction of a count, rounded, but at least one if there are any."""
    return min(count, max(1, round(fraction * count)))


class Fingerprint(NamedTuple):
    """The state of a data set when a run began."""

    kind: str  # of the source: "Folder", "Coco", "Shapes"
    samples: int
    files: int  # 0 for a generated set
    bytes: int  # of all files
    digest: str  # 16 hex digits over file names, file sizes, annotations and class names
    listing: Tensor  # uint8, compressed: a line "name<tab>size" per file, to report what changed

    def saved(self) -> dict[str, Any]:
        """Return the fields as plain values and a tensor, for the training state."""
        return self._asdict()


def fingerprint(source: Any) -> Fingerprint:
    """Return the fingerprint of a source of any kind; a subset has the fingerprint of its whole source.

    Names are relative to the folder that all files share, so moving the whole set does not change its fingerprint.
    """
    source, _ = whole_of(source)
    samples, kind = len(source), getattr(source, "kind", type(source).__name__)
    if hasattr(source, "listing"):  # a pack
        packed, sizes = source.listing(), source.file_sizes()
        text = zlib.decompress(packed)
    else:
        lines, sizes = _lines(source)
        text = _text(lines)
        packed = zlib.compress(text, 1)
    about = f"{kind} {samples} {list(source.classes)}\n".encode()
    digest = hashlib.sha256(about + text).hexdigest()[:16]
    listing = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return Fingerprint(kind, samples, len(sizes), sum(sizes), digest, listing)


def listing_of(paths: Sequence[str], sizes: Sequence[int]) -> bytes:
    """Return the compressed listing of files: a line "name<tab>size" for each, sorted by its text."""
    return zlib.compress(_text(_named(paths, sizes)), 1)


def _lines(source: Any) -> tuple[list[str], list[int]]:
    """Return the lines of a source's listing, and the size of every file."""
    paths, lines, sizes = _paths(source), [], []
    groups = [paths] if paths else []
    if paths and hasattr(source, "map_of"):
        groups.append([str(source.map_of(index)) for index in range(len(source))])
    for names in groups:
        own = _of_files(names, "st_size")
        sizes += own
        lines += _named(names, own)
    if hasattr(source, "json"):
        lines.append(f"{source.json.name}\t{hashlib.sha256(source.json.read_bytes()).hexdigest()}")
    return lines, sizes


def _named(paths: Sequence[str], sizes: Sequence[int]) -> list[str]:
    return [f"{name}\t{size}" for name, size in zip(_relative(paths), sizes, strict=True)]


def _text(lines: Sequence[str]) -> bytes:
    return "\n".join(sorted(lines)).encode("utf-8", "surrogateescape")


def digest_of_times(source: Any) -> str:
    """Return 16 hex digits over the modification times of a source's image files; of none if they are generated.

    A pack gives its digest, which covers the checksums of its images.
    """
    source, _ = whole_of(source)
    if hasattr(source, "file_digest"):
        digest: str = source.file_digest()
        return digest
    times = _of_files(_paths(source), "st_mtime_ns")
    return hashlib.sha256(np.array(times, "<i8").tobytes()).hexdigest()[:16]


def _paths(source: Any) -> list[str]:
    """Return the path of every image; none if the images are generated."""
    if hasattr(source, "paths"):
        paths: list[str] = source.paths()
        return paths
    first = source.where(0)
    if os.path.isabs(first) or os.path.exists(first):  # noqa: PTH110, PTH117 - Path is slow
        return [source.where(index) for index in range(len(source))]
    return []


def whole_of(source: Any) -> tuple[Any, np.ndarray]:
    """Return the source that a source selects from, and the indices of its images there, (N,) int64."""
    indices = np.arange(len(source))
    while hasattr(source, "source"):
        indices = source.indices[indices] if hasattr(source, "indices") else indices
        source = source.source
    return source, indices


def compare_fingerprints(before: Mapping[str, Any], now: Fingerprint) -> str | None:
    """Describe how a data set differs from a `saved` fingerprint; None if it does not."""
    if before["digest"] == now.digest:
        return None
    old, new = _parse_listing(before["listing"]), _parse_listing(now.listing)
    parts = {
        "removed": old.keys() - new.keys(),
        "added": new.keys() - old.keys(),
        "changed": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    words = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:SHOWN])}{', ...' * (len(names) > SHOWN)})"
        for what, names in parts.items()
        if names
    ]
    counts = f"{before['files']} files of {before['bytes']} bytes then, {now.files} of {now.bytes} now"
    return f"{counts}: {'; '.join(words) or 'the files are the same, the classes or the kind of data set differ'}"


def _of_files(paths: Sequence[str], what: str) -> list[int]:
    """Return a field of the status of each file; -1 for a missing file."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    found: list[int] = []
    start = time.perf_counter()
    for number, chunk in enumerate(chunks, start=1):
        found += _of_chunk(chunk, what)
        if time.perf_counter() - start > SLOW * len(found):  # a network file system
            with ThreadPoolExecutor(THREADS) as pool:
                rest = pool.map(_of_chunk, chunks[number:], repeat(what))
                return [*found, *chain.from_iterable(rest)]
    return found


def _of_chunk(paths: Sequence[str], what: str) -> list[int]:
    return [_of_file(path, what) for path in paths]


def _of_file(path: str, what: str) -> int:
    try:
        return int(getattr(os.stat(path), what))  # noqa: PTH116 - Path is slow for millions of files
    except OSError:
        return -1


def _relative(paths: Sequence[str]) -> list[str]:
    cut = len(os.path.commonpath([os.path.dirname(path) for path in (min(paths), max(paths))]))  # noqa: PTH120
    return [path[cut:].lstrip(os.sep) for path in paths]


def _parse_listing(listing: Tensor) -> dict[str, str]:
    text = zlib.decompress(listing.numpy().tobytes()).decode("utf-8", "surrogateescape")
    pairs = (line.rpartition("\t") for line in text.split("\n") if line)
    return {name: size for name, _, size in pairs}
