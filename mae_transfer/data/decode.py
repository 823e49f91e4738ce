"""Decode image files to uint8 RGB tensors: libjpeg-turbo for JPEGs, PIL for all other files.

With nvImageCodec, an image of which a run needs one crop is decoded there only (`decode_late`). It skips the inverse
transform outside the crop and all rows below it; the pixels are the same, because it decodes the neighbours that the
interpolation of colours needs.

The EXIF orientation is applied. Transparent pixels are blended with white, 16-bit grey keeps its upper 8 bits, and an
animation gives its first frame. An image with broken metadata (EXIF, colour profile, texts) is still decoded, and a
note (data/reports.py) names the file.

Metadata are removed by the PNG specification (chunks), ITU T.81 annex B (JPEG markers), TIFF 6.0 (image file
directories), the WebP container specification (RIFF chunks) and ISO/IEC 23008-12 (items of AVIF).

Legend: H x W pixels of the upright image.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mae_transfer.data.reports import PROCESS, library_messages, note

T = TypeVar("T")
Box = tuple[int, int, int, int]  # top, left, height, width
ORIENTATION = 0x0112  # EXIF tag; its values 5 to 8 swap height and width
PNG, JPEG, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# APP1..APP13, APP15 and COM. APP0 (JFIF) and APP14 (Adobe) are kept, because they define the colours.
JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
JPEG_FRAMES, JPEG_SCAN = frozenset({0xC0, 0xC1, 0xC2}), 0xDA
# Before the scan of a JPEG without EXIF (APP1): the frame, tables, restart interval, other APPs and COM
JPEG_PLAIN = frozenset({*JPEG_FRAMES, 0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE})
WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # and their flags in VP8X
# TIFF tags that describe how pixels are stored, and the orientation (274)
TIFF_PIXELS = frozenset(
    {*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, 320}
    | {*range(322, 326), 338, 339, 347, *range(529, 533)}
)


class UnreadableImage(ValueError):  # noqa: N818 - named like KeyboardInterrupt
    """The file is not an image, is truncated, or is too large to decode. The message names it."""


def decode_file(path: str | Path) -> Tensor:
    """Return the image in a file as (3, H, W) uint8 RGB. UnreadableImage or OSError name a file that cannot be used."""
    return decode(read_file(path), where=str(path))


def decode(data: bytes, *, where: str) -> Tensor:
    """Return the image as (3, H, W) uint8 RGB.

    Args:
        data: the whole file, in any format that PIL reads. Its name does not matter.
        where: name of the file, for errors and notes.

    Raises:
        UnreadableImage: names the file and its defect.
    """
    return open_image(data, _rgb_tensor, where=where)


class Undecoded(Tensor):
    """A meta tensor with the shape of an image, (3, H, W), that is decoded where it is cropped."""

    file: bytes
    origin: str  # name of the file, for errors and notes
    turn: int  # EXIF orientation
    left: bool = False  # whether a crop of it is decoded on the device (data/regions.py)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch.nn.Parameter does

    def crop(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return the pixels of a box, (3, height, width) uint8. UnreadableImage names a file that cannot be decoded."""
        box = stored_box((top, left, height, width), self.shape[-2:], self.turn)
        pixels = _decode_region(self.file, *box)
        if pixels is not None:
            return upright(pixels, self.turn)
        return decode(self.file, where=self.origin)[:, top : top + height, left : left + width]


def decode_late(data: bytes, *, where: str, leave: bool = False) -> Tensor:
    """Return an image as Undecoded if its regions can be decoded, otherwise as `decode` does.

    `decode` also gets every file with something unusual, which it names: trailing bytes, a cut end, broken EXIF.

    Args:
        leave: another process decodes the regions, so that this one needs no decoder of them.
    """
    if (leave or _region_decoder(os.getpid()) is not None) and data.endswith(JPEG_END):
        with suppress(Exception):
            if found := _plain_header(data) or _header(data):
                size, turn = found
                late = torch.empty((3, *size), dtype=torch.uint8, device="meta").as_subclass(Undecoded)
                late.file, late.origin, late.turn = data, where, turn
                return late
    return decode(data, where=where)


def _plain_header(data: bytes) -> tuple[tuple[int, int], int] | None:
    """Return (H, W) and orientation 1 of a JPEG of one or three 8-bit colours; None if it may have an orientation.

    It takes 3 us, and `_header` 30.
    """
    at, size = 2, None
    while data[at] == 0xFF and (marker := data[at + 1]) in JPEG_PLAIN:
        if marker in JPEG_FRAMES:
            precision, height, width, colours = struct.unpack_from(">BHHB", data, at + 4)
            fits = 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf) and precision == 8 and colours in (1, 3)
            if size or not fits:
                return None
            size = height, width
        if data[at + 4 : at + 7] == b"MPF":  # several pictures in one file
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return (size, 1) if size and data[at : at + 2] == bytes([0xFF, JPEG_SCAN]) else None


def _header(data: bytes) -> tuple[tuple[int, int], int] | None:
    """Return (H, W) and orientation of an upright JPEG that libjpeg turns into RGB; None if anything is unusual."""
    warned: list[str] = []
    with library_messages(warned), Image.open(io.BytesIO(data)) as image:
        turn = orientation(image, warned)
        size = image.size if turn >= 5 else image.size[::-1]
        return (size, turn) if image.format == "JPEG" and image.mode in ("RGB", "L") and not warned else None


def open_image(data: bytes, read: Callable[[Image.Image, bytes, list[str]], T], *, where: str) -> T:
    """Open an image and return the result of `read`. If it fails, try again without the metadata and note the file.

    Args:
        data: the whole file.
        read: takes the opened image, the bytes of the file, and a list to which it appends the libraries' warnings.
        where: name of the file, for errors and notes.

    Raises:
        UnreadableImage: names the file and its defect.
    """
    warned: list[str] = []
    try:
        found = _read(data, read, warned)
    except UnreadableImage:  # raised by `read`
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{where}: {error}; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, KeyError and more on broken files
        for stripped in without_metadata(data):
            with suppress(Exception):
                found, warned = _read(stripped, read, []), ["its metadata are broken"]
                break
        else:
            unknown = isinstance(error, UnidentifiedImageError)
            what = "are not in a known image format" if unknown else f"cannot be decoded: {error}"
            raise UnreadableImage(f"{where}: its {len(data)} bytes {what}") from error
    _note_warnings(where, warned)
    return found


def _read(data: bytes, read: Callable[[Image.Image, bytes, list[str]], T], warned: list[str]) -> T:
    with library_messages(warned):
        image = Image.open(io.BytesIO(data))  # reads only the header; raises for huge sizes
    with image:
        return read(image, data, warned)


def _note_warnings(where: object, warned: list[str]) -> None:
    if warned:
        note(f"{where}: {'; '.join(dict.fromkeys(warned))} (its pixels are used)")


def read_file(path: str | Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        UnreadableImage: the file is a named pipe or a device, which could block forever.
        OSError: the file is missing.
    """
    with open_file(path) as file:
        return file.read()


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Raises the same errors as read_file."""
    # without O_NONBLOCK, opening a pipe would block until something writes to it
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableImage(f"{path} is a pipe, a device or a socket, not a regular file: remove it")
        yield file


def size_of(path: Path) -> tuple[int, int] | str:
    """Return H, W of an upright image file, read from its header; or the defect of the file."""
    warned: list[str] = []
    try:
        with open_file(path) as file, library_messages(warned), Image.open(file) as image:
            size = _upright_size(image, warned)
    except FileNotFoundError:
        return "missing image"
    except Exception:  # PIL raises many types on broken files; try again without the metadata
        try:
            return open_image(read_file(path), lambda image, _, warned: _upright_size(image, warned), where=str(path))
        except (UnreadableImage, OSError):
            return "unreadable image"
    _note_warnings(path, warned)
    return size


def _upright_size(image: Image.Image, warned: list[str]) -> tuple[int, int]:
    turned = orientation(image, warned) >= 5
    if hasattr(image, "tag_v2") and image.tag_v2.get(ORIENTATION) in (5, 6, 7, 8):
        turned = False  # PIL already gives the upright size of a TIFF
    return (image.width, image.height) if turned else (image.height, image.width)


def orientation(image: Image.Image, warned: list[str]) -> int:
    """Return the EXIF orientation of an image, 1 to 8. It is 1 if missing or unreadable; the latter adds a warning."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # PIL raises many types on broken EXIF
        warned.append(f"its EXIF cannot be read ({str(error) or type(error).__name__}), so it is not rotated")
        return 1
    return int(value) if value in range(1, 9) else 1


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """Rotate and flip pixels (..., H, W) according to an EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.mT
    flips = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def _rgb_tensor(image: Image.Image, data: bytes, warned: list[str]) -> Tensor:
    pixels = _fast(image, data, warned)
    if pixels is not None:
        return pixels
    load(image, warned)
    with library_messages(warned):
        pixels = torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)
        return upright(pixels, orientation(image, warned))


def load(image: Image.Image, warned: list[str]) -> None:
    """Decode the pixels. For a TIFF, PIL also applies and removes the orientation, and libtiff may write to stderr."""
    if image.format == "TIFF":
        with library_messages(warned, stderr=True):
            image.load()
    else:
        image.load()


def _fast(image: Image.Image, data: bytes, warned: list[str]) -> Tensor | None:
    """Return the upright pixels of a JPEG from the fast decoder; None if it cannot decode the file or is in use.

    The decoder writes to standard error, so one thread uses it at a time.
    """
    if (
        _fast_jpeg is None
        or image.format not in ("JPEG", "MPO")
        or image.mode not in ("RGB", "L")
        or not PROCESS.acquire(blocking=False)
    ):
        return None
    try:
        with library_messages(warned, stderr=True):
            return upright(_fast_jpeg(torch.frombuffer(data, dtype=torch.uint8)), orientation(image, warned))
    except RuntimeError:  # PIL decides whether the file is broken
        return None
    finally:
        PROCESS.release()


def _decode_region(data: bytes, top: int, left: int, height: int, width: int) -> Tensor | None:
    """Return a box of a JPEG as it is stored, (3, height, width); None if the decoder warns or is in use."""
    if not PROCESS.acquire(blocking=False):
        return None
    warned: list[str] = []
    try:
        with library_messages(warned, stderr=True):
            decoder = _region_decoder(os.getpid())
            pixels = decoder(data, top, left, height, width) if decoder else None
    except Exception:  # the binding raises many types; decoding the whole image decides whether the file is broken
        return None
    finally:
        PROCESS.release()
    return None if pixels is None or warned else torch.from_numpy(np.asarray(pixels)).permute(2, 0, 1)


def stored_box(box: Box, size: tuple[int, ...], turn: int) -> Box:
    """Return the box of the stored image that `upright` turns into a box of the upright image, of H x W pixels."""
    top, left, height, width = box
    if turn in (3, 4, 7, 8):
        top = size[0] - top - height
    if turn in (2, 3, 6, 7):
        left = size[1] - left - width
    return (left, top, width, height) if turn >= 5 else (top, left, height, width)


@functools.cache
def _region_decoder(process: int) -> Callable[..., Any] | None:
    """Return this process's decoder of boxes of JPEGs, (height, width, 3) uint8; None if it is not installed.

    `process` makes the cache per process.
    """
    with library_messages([], stderr=True):  # it complains about missing CUDA libraries, which it does not need
        try:
            codec = importlib.import_module("nvidia.nvimgcodec")
            decoder = codec.Decoder(
                device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
                backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
                max_num_cpu_threads=1,
            )
            params = codec.DecodeParams(apply_exif_orientation=False)
        except (ImportError, AttributeError, RuntimeError, OSError):  # absent, too old, or its libraries are missing
            return None

    def decode_box(data: bytes, top: int, left: int, height: int, width: int) -> Any:
        box = codec.Region(top, left, top + height, left + width)
        return decoder.decode(codec.CodeStream(data).get_sub_code_stream(region=box), params=params)

    return decode_box


def _rgb(image: Image.Image) -> Image.Image:
    """Return a PIL image of any mode as RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image, dtype=np.int32).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _find_fast_jpeg() -> Callable[[Tensor], Tensor] | None:
    """Return the fastest exact JPEG decoder that is installed. torchcodec's will replace the one of torchvision."""
    with suppress(ImportError):
        from torchvision.io import ImageReadMode, decode_jpeg

        return lambda data: decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=False)
    try:
        # imported by name, so that type checks do not depend on whether it is installed
        decode_jpeg = importlib.import_module("torchcodec.decoders").decode_jpeg
    except (ImportError, AttributeError, RuntimeError, OSError):  # absent, too old, or its libraries are missing
        return None
    return lambda data: decode_jpeg(_without_orientation(data), mode="RGB")


def _without_orientation(data: Tensor) -> Tensor:
    """Return a JPEG without its EXIF orientation, because torchcodec would apply it."""
    *_, bare = [data.numpy().tobytes(), *without_metadata(data.numpy().tobytes())]
    return torch.frombuffer(bytearray(bare), dtype=torch.uint8)


_fast_jpeg = _find_fast_jpeg()


def without_metadata(data: bytes) -> Iterator[bytes]:
    """Yield the file without metadata other than EXIF, then without any metadata. Unknown formats yield nothing."""
    for is_one, strip in _FORMATS:
        if is_one(data):
            for keep_exif in (True, False):
                try:
                    yield strip(data, keep_exif)
                except (struct.error, IndexError):  # truncated file
                    return


def _png(data: bytes, keep_exif: bool) -> bytes:
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind in PNG_PIXELS or (keep_exif and kind == b"eXIf"):
            kept.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept)


def _jpeg(data: bytes, keep_exif: bool) -> bytes:
    kept, at = [data[:2]], 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == JPEG_SCAN:  # the rest of the file is pixels
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker not in JPEG_METADATA or (keep_exif and data[at + 4 : at + 8] == b"Exif"):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])


def _webp(data: bytes, keep_exif: bool) -> bytes:
    chunks, flags, at = [], 0xFF, 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if kind in WEBP_METADATA and not (keep_exif and kind == b"EXIF"):
            flags &= ~WEBP_METADATA[kind]
        else:
            chunks.append(data[at:end])
        at = end
    chunks = [chunk[:8] + bytes([chunk[8] & flags]) + chunk[9:] if chunk[:4] == b"VP8X" else chunk for chunk in chunks]
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes, keep_exif: bool) -> bytes:
    """Keep the tags of the first directory that describe the pixels, and the orientation if `keep_exif`."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries = [data[start + 2 + 12 * k : start + 14 + 12 * k] for k in range(count)]
    kept = [
        entry
        for entry in entries
        if struct.unpack_from(order + "H", entry)[0] in TIFF_PIXELS - (set() if keep_exif else {274})
    ]
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + directory + data[start + len(directory) :]


def _avif(data: bytes, keep_exif: bool) -> bytes:
    """Rename the metadata items. Decoders ignore unknown kinds."""
    end = data.find(b"mdat")
    head = data[:end].replace(b"mime", b"free")
    return (head if keep_exif else head.replace(b"Exif", b"free")) + data[end:]


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes, bool], bytes]], ...] = (
    (lambda data: data.startswith(PNG), _png),
    (lambda data: data.startswith(JPEG), _jpeg),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    (lambda data: data[:4] in (b"II*\0", b"MM\0*"), _tiff),
    (lambda data: data[4:12] in (b"ftypavif", b"ftypavis"), _avif),
)
