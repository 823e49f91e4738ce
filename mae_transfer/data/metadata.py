"""Remove the metadata of image files, for files whose broken EXIF, profiles, comments or texts make a decoder fail.

Sources: the PNG specification (chunks), ITU T.81 annex B (JPEG markers), TIFF 6.0 (image file directories), the WebP
container specification (RIFF chunks), ISO/IEC 23008-12 (items of AVIF).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# APP1..APP13, APP15 and COM. APP0 (JFIF) and APP14 (Adobe) are kept, because they define the colours.
JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # and their flags in VP8X
# TIFF tags that describe how pixels are stored, and the orientation (274)
TIFF_PIXELS = frozenset(
    {*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, 320}
    | {*range(322, 326), 338, 339, 347, *range(529, 533)}
)


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
        if marker == 0xDA:  # the scan: the rest of the file is pixels
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
