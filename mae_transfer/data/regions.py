"""Crops of JPEGs that are decoded in batches on the device, by nvImageCodec, after a worker has drawn them."""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.data.decode import Box, Undecoded, stored_box
from mae_transfer.data.reports import library_messages
from mae_transfer.interfaces import ViewSpec

MISSING = (
    "run.decode_on = 'device' needs nvImageCodec: pip install 'nvidia-nvimgcodec-cu12[all]' (cu13 for CUDA 13), or "
    "remove it"
)


class Region(NamedTuple):
    """A crop that has been drawn and is still to be decoded."""

    file: bytes
    box: Box  # of the stored image
    turn: int  # EXIF orientation
    flip: bool
    view: ViewSpec


class LeftCrop(Tensor):
    """A meta tensor with the shape of a view, (3, S, T), that the device decodes."""

    region: Region
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch.nn.Parameter does


def leave(image: Undecoded, box: Box, view: ViewSpec, *, size: tuple[int, int], flip: bool) -> Tensor:
    """Return the view of an image as LeftCrop. `size`: height and width of the view."""
    left = torch.empty((3, *size), dtype=torch.uint8, device="meta").as_subclass(LeftCrop)
    left.region = Region(image.file, stored_box(box, image.shape[-2:], image.turn), image.turn, flip, view)
    return left


def decode_regions(regions: Sequence[Region], device: torch.device) -> list[Tensor | None]:
    """Return the boxes as they are stored, (3, h, w) uint8; None for those that cannot be decoded.

    If the decoder warns of any of them, all are None, because it does not say of which.

    device: a CUDA device decodes them itself; else the CPU does.
    """
    decode = _decoder(os.getpid(), device)
    warned: list[str] = []
    try:
        with library_messages(warned, stderr=True):
            found = decode(regions)
    except Exception:  # the binding raises many types
        return [None] * len(regions)
    return [None] * len(regions) if warned else found


def check_decoder(device: torch.device) -> None:
    """Decode a JPEG on the device. ValueError if it cannot."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG")
    region = Region(file.getvalue(), (8, 8, 16, 16), 1, False, ViewSpec(16, "bicubic"))
    if decode_regions([region], device) == [None]:
        raise ValueError(f"nvImageCodec has no JPEG decoder for {device}; {MISSING}")


@functools.cache
def _decoder(process: int, device: torch.device) -> Callable[[Sequence[Region]], list[Tensor | None]]:
    """Return this process's decoder for a device. `process` makes the cache per process."""
    on_gpu = device.type == "cuda"
    index = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    with library_messages([], stderr=True):  # without a GPU it complains about missing CUDA libraries
        try:
            codec = importlib.import_module("nvidia.nvimgcodec")
            kinds = codec.BackendKind
            kind = [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU] if on_gpu else [kinds.CPU_ONLY]
            decoder = codec.Decoder(
                device_id=index if on_gpu else codec.NVIMGCODEC_DEVICE_CPU_ONLY,
                backends=[codec.Backend(one) for one in kind],
                max_num_cpu_threads=0 if on_gpu else 1,
                options=":fancy_upsampling=1",  # colours are interpolated, as libjpeg-turbo does
            )
            params = codec.DecodeParams(apply_exif_orientation=False)
        except (ImportError, AttributeError, RuntimeError, OSError) as error:  # absent, too old, or without libraries
            raise ValueError(MISSING) from error

    def decode(regions: Sequence[Region]) -> list[Tensor | None]:
        streams = []
        for region in regions:
            top, left, height, width = region.box
            box = codec.Region(top, left, top + height, left + width)
            streams.append(codec.CodeStream(region.file).get_sub_code_stream(region=box))
        stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
        return [_tensor(image) for image in decoder.decode(streams, params=params, cuda_stream=stream)]

    def _tensor(image: Any) -> Tensor | None:
        if image is None:
            return None
        pixels = torch.as_tensor(image, device=device) if on_gpu else torch.from_numpy(np.asarray(image))
        return pixels.permute(2, 0, 1)

    return decode
