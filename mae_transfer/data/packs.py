"""Packs: a folder of images as one uncompressed zip, with an index for random access.

`zip -0`, unzip and Python's zipfile write and read a pack. Python takes 6 to 14 s to read the directory of a zip of 1.3
million images, so an index beside it, NAME.zip.index, holds what a run needs as arrays. Listings for fingerprints are
among them, because making one takes 2 s. `tools/benchmark.py open` compares opening a pack with opening its folder.

The order is that of the folder: component by component of the path, by bytes. Layout of a zip: PKWARE's APPNOTE,
sections 4.3.7 (header of a member) and 4.3.16 (end of the directory).
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae_transfer.data.decode import UnreadableImage, decode, read_file
from mae_transfer.data.folders import (
    Folder,
    FolderConfig,
    IgnoredFiles,
    image_suffixes,
    list_images,
    no_classes,
    no_images,
    no_split,
)
from mae_transfer.data.reports import report_on_main
from mae_transfer.data.sources import UNLABELLED, listing_of
from mae_transfer.disk import atomic_write, remove_leftovers

VERSION = 4  # of the index
ARRAYS = ("size", "start", "digest", "names", "ends", "offsets", "sizes", "checksums", "folders", "spans")  # of it
LISTINGS = ("listings", "listing_ends")  # arrays that only fingerprints need
HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of name and extra field


class Span(NamedTuple):
    """The images below a folder of a pack, at any depth: members `start` to `stop`."""

    start: int
    stop: int


class Pack:
    """The images of a zip in the folder's order. Each process opens the file on its own."""

    def __init__(self, path: Path) -> None:
        """Load the index. ValueError if the file is no pack, or the index is missing, broken or not of this file."""
        self.path = path
        self._opened: tuple[int, int] | None = None  # the process that opened the file, and the descriptor
        index = _load_index(path, ARRAYS)
        self.digest: str = index["digest"].item()
        size = path.stat().st_size
        if size != index["size"] or _digest(path, int(index["start"])) != self.digest:
            raise ValueError(
                f"{path} ({size} bytes) is not the pack of its index ({index['size']} bytes), so it is truncated or "
                f"was replaced: copy it again, or, if the zip is right, {_rewrite(path)}"
            )
        self.offsets, self.sizes, self.checksums, self._names, self._ends = (
            index[key] for key in ("offsets", "sizes", "checksums", "names", "ends")
        )
        folders = _text(index["folders"]).split("\0")
        self.folders = {name: Span(*span) for name, span in zip(folders, index["spans"].tolist(), strict=True)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, member: int) -> str:
        """Return the path of a member within the pack."""
        return _text(self._names[self._ends[member - 1] if member else 0 : self._ends[member]])

    def names(self) -> list[str]:
        """Return the path of every member within the pack: faster than one by one."""
        names = self._names.tobytes()
        return [names[start:end].decode() for start, end in pairwise([0, *self._ends.tolist()])]

    def listing(self, folder: str) -> bytes | None:
        """Return the compressed listing of a folder, as fingerprints have it; None if the index does not have it."""
        listed = _listed(self.folders)
        if folder not in listed:
            return None
        index, number = _load_index(self.path, ("digest", *LISTINGS)), listed.index(folder)
        if index["digest"].item() != self.digest:
            raise ValueError(f"{index_of(self.path)} has changed since it was opened: start again")
        start, end = [0, *index["listing_ends"].tolist()][number : number + 2]
        return index["listings"][start:end].tobytes()

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, in order; "" is the pack itself."""
        start = f"{folder}/" if folder else ""
        below = (name.removeprefix(start) for name in self.folders if name.startswith(start) and name != folder)
        return [name for name in below if "/" not in name]

    def read(self, member: int) -> bytes:
        """Return the bytes of a member. UnreadableImage names one that is damaged."""
        at, size = int(self.offsets[member]), int(self.sizes[member])
        try:
            header = os.pread(self._file(), HEADER.size, at)
            signature, name, extra = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
            data = os.pread(self._file(), size, at + HEADER.size + name + extra)
        except OSError as error:
            raise UnreadableImage(f"{self.path}/{self.name(member)} cannot be read: {error.strerror}") from error
        if signature != b"PK\x03\x04" or zlib.crc32(data) != self.checksums[member]:
            raise UnreadableImage(
                f"{self.path}/{self.name(member)} is damaged: its {size} bytes, after byte {at} of the pack, "
                "do not have its checksum: copy the pack again"
            )
        return data

    def _file(self) -> int:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            inherited, self._opened = self._opened, (process, os.open(self.path, os.O_RDONLY))
            if inherited:
                os.close(inherited[1])
        return self._opened[1]

    def __del__(self) -> None:
        if self._opened:
            os.close(self._opened[1])


def open_pack(path: Path) -> Pack:
    """Return a pack. Training and validation set share one, until its zip or index changes."""
    times = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in (path, index_of(path)))
    return _open_pack(path, times)


@lru_cache(maxsize=4)
def _open_pack(path: Path, times: tuple[int, ...]) -> Pack:
    return Pack(path)


class PackedFolder(Folder):
    """The images of a folder in a pack, with the order, labels and fingerprint of the folder that was packed."""

    kind = "Folder"  # in fingerprints

    def __init__(self, cfg: FolderConfig) -> None:
        """Select the images. ValueError names the folder that is missing or empty, and the remedy."""
        pack, inside = open_pack(cfg.home), (cfg.split or "").strip("/")
        if inside not in pack.folders:
            raise no_split(cfg.home, cfg.split, pack.subfolders(""))
        self.folder = cfg.home / inside
        self.classes = tuple(pack.subfolders(inside)) if cfg.labelled else ()
        if cfg.labelled and not self.classes:
            raise no_classes(self.folder)
        spans = [pack.folders["/".join(filter(None, (inside, name)))] for name in self.classes or ("",)]
        counts = [span.stop - span.start for span in spans]
        if 0 in counts:
            raise no_images(self.folder / (self.classes or ("",))[counts.index(0)])
        strays = pack.folders[inside].stop - pack.folders[inside].start - sum(counts)
        if strays:
            report_on_main(f"{self.folder}: ignored {strays} images outside class folders")
        self._pack, self._inside, self._is_whole = pack, inside, not strays
        self._members = np.concatenate([np.arange(*span) for span in spans])
        self._labels = np.repeat(np.arange(len(spans)) if cfg.labelled else UNLABELLED, counts)
        self._decode = decode

    def __len__(self) -> int:
        return len(self._members)

    def file(self, index: int) -> bytes:
        """Return the file of image `index`. UnreadableImage names a damaged member."""
        return self._pack.read(self._members[index])

    def where(self, index: int) -> str:
        """Return the path of image `index`, as if the pack were a folder."""
        return f"{self._pack.path}/{self._pack.name(self._members[index])}"

    def paths(self) -> list[str]:
        """Return the path of every image."""
        names, home = self._pack.names(), f"{self._pack.path}/"
        return [home + names[member] for member in self._members.tolist()]

    def file_sizes(self) -> list[int]:
        """Return the size of every image file in bytes."""
        sizes: list[int] = self._pack.sizes[self._members].tolist()
        return sizes

    def listing(self) -> bytes:
        """Return the compressed listing of a fingerprint: from the index, or made if the index does not have it."""
        kept = self._pack.listing(self._inside) if self._is_whole else None
        return kept or listing_of(self.paths(), self.file_sizes())

    def file_digest(self) -> str:
        """Return 16 hex digits over names, sizes and checksums of everything in the pack."""
        return self._pack.digest


def write_pack(folder: Path, path: Path) -> int:
    """Write the images below a folder to a zip with its index; return their number.

    An interrupted or failed call leaves no file. Class folders without an image are kept, so that opening the pack
    reports them as opening the folder does.

    Raises:
        ValueError: the zip exists, the folder is missing or has no image, or an image is unreadable or not named in
            UTF-8.
        OSError: names the file that could not be written, and the remedy.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither a folder nor a zip: name the folder with the images, or a zip of it")
    if path.exists():
        raise ValueError(f"{path} already exists: remove it, or name another file with --to")
    ignored, root = IgnoredFiles(), os.fsencode(folder)
    names = [os.path.relpath(name, root) for name in list_images(root, ignored)]
    if not names:
        raise no_images(folder, ignored)
    if ignored:
        report_on_main(f"{folder}: ignored {ignored}")
    members = [*(f"{name}/" for name in _folders(folder)), *(_utf8(name, folder) for name in names)]
    remove_leftovers(path.parent, path.name)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", strict_timestamps=False) as archive:
        for member in members:
            archive.writestr(*_member(folder, member))
    try:
        return write_index(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_index(path: Path) -> int:
    """Write the index of a zip that any tool made; return the number of images.

    Raises:
        ValueError: the file is no zip, is truncated, has no image, or a member is compressed, encrypted, duplicate
            or has a name that is absolute or not UTF-8.
    """
    try:
        # Info-ZIP stores UTF-8 without the flag that says so
        with zipfile.ZipFile(path, metadata_encoding="utf-8") as archive:
            members, start = archive.infolist(), archive.start_dir
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: the name {error.object!r} is not UTF-8: unpack the zip, and pack the folder with --root FOLDER"
        ) from error
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:  # the last for unknown versions of zip
        raise ValueError(f"{path} is not a zip, or it is truncated ({error}): make or copy it again") from error
    images, empty = _visible(path, members)
    images.sort(key=_order)
    _check_members(path, images)
    names = [image.filename.encode() for image in images]
    folders = _spans([image.filename for image in images], empty)
    listings = [_listing(images[slice(*folders[name])]) for name in _listed(folders)]
    arrays: dict[str, Any] = {
        "version": VERSION,
        "size": path.stat().st_size,
        "start": start,
        "digest": _digest(path, start),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "ends": np.cumsum([len(name) for name in names]),
        "offsets": np.array([image.header_offset for image in images], np.int64),
        "sizes": np.array([image.file_size for image in images], np.int64),
        "checksums": np.array([image.CRC for image in images], np.uint32),
        "folders": np.frombuffer("\0".join(folders).encode(), np.uint8),
        "spans": np.array(list(folders.values()), np.int64),
        "listings": np.frombuffer(b"".join(listings), np.uint8),
        "listing_ends": np.cumsum([len(listing) for listing in listings]),
    }
    with atomic_write(index_of(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return len(images)


def index_of(path: Path) -> Path:
    """Return the path of a pack's index."""
    return path.with_name(f"{path.name}.index")


def _visible(path: Path, members: Sequence[zipfile.ZipInfo]) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """Return the images and the names of the folders that are not hidden, and report the other files."""
    images, folders, ignored = [], [], IgnoredFiles()
    for member in members:
        name = member.filename = member.filename.removeprefix("./")
        if name.startswith("/"):
            raise ValueError(f"{path}: the name {name} starts with /: make the zip with `zip -0 -r` inside the folder")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if name.endswith("/") or not name:
            if not hidden:
                folders.append(name)
        elif hidden or not os.fsencode(name.lower()).endswith(image_suffixes()):
            ignored.add(os.fsencode(name), "that is hidden" if hidden else "")
        else:
            images.append(member)
    if not images:
        raise no_images(path, ignored)
    if ignored:
        report_on_main(f"{path}: ignored {ignored}")
    return images, folders


def _check_members(path: Path, images: Sequence[zipfile.ZipInfo]) -> None:
    for before, image in zip([None, *images], images, strict=False):
        if image.compress_type != zipfile.ZIP_STORED or image.flag_bits & 1:
            how = "encrypted" if image.flag_bits & 1 else "compressed"
            raise ValueError(f"{path}: {image.filename} is {how}, but a pack stores files: make it with `zip -0 -r`")
        if before is not None and before.filename == image.filename:
            raise ValueError(f"{path} contains {image.filename} twice: make it again with one of them")


def _spans(images: Sequence[str], empty: Sequence[str]) -> Mapping[str, Span]:
    """Return where the images of every folder are, in order; `images` are sorted, and "" is the pack itself."""
    spans = {"": Span(0, len(images))}
    for index, image in enumerate(images):
        for folder in _parents(image):
            spans[folder] = Span(spans[folder].start if folder in spans else index, index + 1)
    for name in empty:
        for folder in (name.rstrip("/"), *_parents(name.rstrip("/"))):
            spans.setdefault(folder, Span(0, 0))
    return dict(sorted(spans.items(), key=lambda item: item[0].replace("/", "\0").encode()))


def _listed(folders: Mapping[str, Span]) -> list[str]:
    """Return the folders whose listing the index has: the pack, "", and those directly in it, if they have images."""
    return [name for name, span in folders.items() if "/" not in name and span.stop > span.start]


def _listing(images: Sequence[zipfile.ZipInfo]) -> bytes:
    return listing_of([image.filename for image in images], [image.file_size for image in images])


def _parents(name: str) -> Iterator[str]:
    """Yield the folders that a path lies in, the innermost first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _member(folder: Path, name: str) -> tuple[zipfile.ZipInfo, bytes]:
    """Return the header and the bytes of a file, or of a folder. ValueError names one that cannot be read."""
    path = folder / name
    try:
        member = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
        return member, b"" if member.is_dir() else read_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): repair or remove it") from error


def _order(member: zipfile.ZipInfo) -> bytes:
    return member.filename.replace("/", "\0").encode()


def _folders(folder: Path) -> Iterator[str]:
    """Yield the visible folders below a folder, relative to it."""
    for path, names, _ in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in names:
            yield _utf8(os.fsencode(os.path.relpath(Path(path) / name, folder)), folder)


def _utf8(name: bytes, folder: Path) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{folder}: the name {name!r} is not UTF-8, which a zip needs: rename it") from None


def _text(array: np.ndarray) -> str:
    return array.tobytes().decode()


def _digest(path: Path, start: int) -> str:
    """Return 16 hex digits over the directory of a zip, from byte `start` on: all names, sizes and checksums."""
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _load_index(path: Path, keys: Sequence[str]) -> Mapping[str, np.ndarray]:
    index = index_of(path)
    try:
        with np.load(index, allow_pickle=False) as arrays:
            if arrays["version"] != VERSION:
                raise ValueError(f"version {arrays['version']}, not {VERSION}")
            return {key: arrays[key] for key in keys}
    except FileNotFoundError:
        raise ValueError(f"{path} has no index {index.name} beside it: {_rewrite(path)}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{index} cannot be used ({error}): {_rewrite(path)}") from error


def _rewrite(path: Path) -> str:
    return f"write its index with `python tools/prepare_data.py pack --root {path}`"
