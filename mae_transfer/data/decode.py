"""Bytes of an image file -> uint8 RGB tensor: libjpeg-turbo for JPEGs, PIL for everything that it rejects.

Legend: H x W pixels, upright (the EXIF orientation is applied). Transparent pixels show a white ground, 16-bit grey keeps its upper 8 bits, an
animation gives its first frame.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


class UnreadableImage(ValueError):  # noqa: N818 - it names the fact, as KeyboardInterrupt does
    """A file that is no image, is cut off, or is too large to decode; the message names it."""


def decode(data: bytes, *, where: str) -> Tensor:
    """Return the image as (3, H, W) uint8 RGB.

    Args:
        data: the whole file, in any format that PIL knows, whatever its name says.
        where: the file's name, for the error.
    Raises:
        UnreadableImage: names `where` and what is wrong with it.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities", category=DeprecationWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{where}: {error}; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{where}: its {len(data)} bytes are in no known image format") from error
    except Exception as error:  # PIL's plugins raise nearly anything on broken files: OSError, SyntaxError, struct.error, KeyError ...
        raise UnreadableImage(f"{where}: its {len(data)} bytes cannot be decoded: {error}") from error


def _decode(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:  # reads the header only, and refuses huge sizes
        if _fast_jpeg is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
            try:
                return _fast_jpeg(_as_tensor(data))
            except RuntimeError:  # PIL decides whether the file is broken or merely unusual
                pass
        return torch.from_numpy(np.array(_rgb(ImageOps.exif_transpose(image)))).permute(2, 0, 1)


def _as_tensor(data: bytes) -> Tensor:
    # torch warns that bytes are read-only; the decoders only read, and a copy would cost time
    warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
    return torch.frombuffer(data, dtype=torch.uint8)


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

        return lambda data: decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except ImportError:
        pass
    try:
        decode_jpeg = importlib.import_module("torchcodec.decoders").decode_jpeg  # by name: type checkers see it or not, as it is installed or not
    except (ImportError, AttributeError, RuntimeError, OSError):  # absent, too old, or without its libraries
        return None
    return lambda data: decode_jpeg(data, mode="RGB")


_fast_jpeg = _find_fast_jpeg()
