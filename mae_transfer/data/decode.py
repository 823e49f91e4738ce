"""Bytes of an image file -> uint8 RGB tensor: libjpeg-turbo for JPEGs, PIL for everything that it rejects.

Legend: H x W pixels, upright (the EXIF orientation is applied). Transparent pixels show a white ground, 16-bit grey keeps its upper 8 bits, an
animation gives its first frame. Broken metadata (EXIF, colour profile, texts) costs no pixels: a note (data/notes.py) names the file.
"""

from __future__ import annotations

import importlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mae_transfer.data.metadata import without_metadata
from mae_transfer.data.notes import PROCESS, heard, note

T = TypeVar("T")
ORIENTATION = 0x0112  # EXIF's tag; its values 5 to 8 exchange height and width


class UnreadableImage(ValueError):  # noqa: N818 - it names the fact, as KeyboardInterrupt does
    """A file that is no image, is cut off, or is too large to decode; the message names it."""


def decode_file(path: str | Path) -> Tensor:
    """Return the image in a file as (3, H, W) uint8 RGB; UnreadableImage or OSError name a file that cannot be used."""
    return decode(read_file(path), where=str(path))


def decode(data: bytes, *, where: str) -> Tensor:
    """Return the image as (3, H, W) uint8 RGB.

    Args:
        data: the whole file, in any format that PIL knows, whatever its name says.
        where: the file's name, for errors and notes.
    Raises:
        UnreadableImage: names `where` and what is wrong with it.
    """
    return opened_image(data, _rgb_tensor, where=where)


def opened_image(data: bytes, read: Callable[[Image.Image, bytes, list[str]], T], *, where: str) -> T:
    """Return what `read` makes of the image: first of the file as it is, then of the file without its metadata, which then are noted as broken.

    Args:
        read: takes the image with its header read, the bytes that it is opened from, and a list of what libraries say about it.
    Raises:
        UnreadableImage: names `where` and what is wrong with it.
    """
    said: list[str] = []
    try:
        found = _read(data, read, said)
    except UnreadableImage:  # `read` has said what is wrong
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{where}: {error}; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except (
        Exception
    ) as error:  # PIL's plugins raise nearly anything on broken files: OSError, SyntaxError, struct.error, KeyError ...
        sound = next(_without_metadata(data, read), None)
        if sound is None:
            unknown = isinstance(error, UnidentifiedImageError)
            what = "are in no known image format" if unknown else f"cannot be decoded: {error}"
            raise UnreadableImage(f"{where}: its {len(data)} bytes {what}") from error
        found, said = sound[0], ["its metadata are broken"]
    if said:
        note(f"{where}: {'; '.join(dict.fromkeys(said))} (its pixels are used)")
    return found


def _read(data: bytes, read: Callable[[Image.Image, bytes, list[str]], T], said: list[str]) -> T:
    with heard(said):
        image = Image.open(io.BytesIO(data))  # reads the header only, and refuses huge sizes
    with image:
        return read(image, data, said)


def _without_metadata(data: bytes, read: Callable[[Image.Image, bytes, list[str]], T]) -> Iterator[tuple[T]]:
    for stripped in without_metadata(data):
        try:
            yield (_read(stripped, read, []),)
        except Exception:  # as above
            continue


def read_file(path: str | Path) -> bytes:
    """Return the content of a regular file; UnreadableImage for a named pipe or a device, which may never answer, OSError for a missing one."""
    with open_file(path) as file:
        return file.read()


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; raises as read_file does."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )  # opening a pipe would wait for its writer
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableImage(f"{path} is no regular file but a pipe, a device or a socket: remove it")
        yield file


def size_of(path: Path) -> tuple[int, int] | str:
    """Return H, W of an image file, upright, from its header; or what is wrong with it."""
    said: list[str] = []
    try:
        with open_file(path) as file, heard(said), Image.open(file) as image:
            size = _upright_size(image, said)
    except FileNotFoundError:
        return "missing image"
    except Exception:  # as above; the whole file may tell more
        try:
            return opened_image(read_file(path), lambda image, _, said: _upright_size(image, said), where=str(path))
        except (UnreadableImage, OSError):
            return "unreadable image"
    if said:
        note(f"{path}: {'; '.join(dict.fromkeys(said))} (its pixels are used)")
    return size


def _upright_size(image: Image.Image, said: list[str]) -> tuple[int, int]:
    turned = orientation(image, said) >= 5
    if hasattr(image, "tag_v2") and image.tag_v2.get(ORIENTATION) in (
        5,
        6,
        7,
        8,
    ):  # PIL gives the upright size of a TIFF
        turned = False
    return (image.width, image.height) if turned else (image.height, image.width)


def orientation(image: Image.Image, said: list[str]) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 where it has none or one that cannot be read, which is then said."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # as above
        said.append(f"its EXIF cannot be read ({str(error) or type(error).__name__}), so it is not turned")
        return 1
    return int(value) if value in range(1, 9) else 1


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """Return pixels (..., H, W) as an image of this EXIF orientation is to be shown."""
    if orientation >= 5:
        pixels = pixels.mT
    flips = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def _rgb_tensor(image: Image.Image, data: bytes, said: list[str]) -> Tensor:
    pixels = _fast(image, data, said)
    if pixels is not None:
        return pixels
    load(image, said)
    with heard(said):
        pixels = torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)
        return upright(pixels, orientation(image, said))


def load(image: Image.Image, said: list[str]) -> None:
    """Decode the pixels, which turns a TIFF upright and takes its orientation away; libtiff writes to standard error."""
    if image.format == "TIFF":
        with heard(said, stderr=True):
            image.load()
    else:
        image.load()


def _fast(image: Image.Image, data: bytes, said: list[str]) -> Tensor | None:
    """Return the pixels of a JPEG, upright, by the fast decoder, which writes to standard error; None where it gives up or is in use."""
    if (
        _fast_jpeg is None
        or image.format not in ("JPEG", "MPO")
        or image.mode not in ("RGB", "L")
        or not PROCESS.acquire(blocking=False)
    ):
        return None
    try:
        with heard(said, stderr=True):
            return upright(_fast_jpeg(torch.frombuffer(data, dtype=torch.uint8)), orientation(image, said))
    except RuntimeError:  # PIL decides whether the file is broken or merely unusual
        return None
    finally:
        PROCESS.release()


def _rgb(image: Image.Image) -> Image.Image:
    """Return a PIL image of any mode as RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image, dtype=np.int32).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _find_fast_jpeg() -> Callable[[Tensor], Tensor] | None:
    """Return the fastest exact JPEG decoder at hand; torchvision has announced that its own will go, torchcodec's replaces it."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        return lambda data: decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=False)
    except ImportError:
        pass
    try:
        decode_jpeg = importlib.import_module(
            "torchcodec.decoders"
        ).decode_jpeg  # by name: type checkers see it or not, as it is installed or not
    except (ImportError, AttributeError, RuntimeError, OSError):  # absent, too old, or without its libraries
        return None
    return lambda data: decode_jpeg(_without_orientation(data), mode="RGB")


def _without_orientation(data: Tensor) -> Tensor:
    """Return a JPEG without its EXIF orientation, which torchcodec applies of its own accord."""
    *_, bare = [data.numpy().tobytes(), *without_metadata(data.numpy().tobytes())]
    return torch.frombuffer(bytearray(bare), dtype=torch.uint8)


_fast_jpeg = _find_fast_jpeg()
