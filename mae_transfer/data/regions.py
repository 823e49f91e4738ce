"""Crops of JPEGs that are decoded in batches on the device, by nvImageCodec, after a worker has drawn them."""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.data.decode import Box, Undecoded, stored_box
from mae_transfer.data.reports import library_messages
from mae_transfer.interfaces import ViewSpec

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")


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


class Decoded(NamedTuple):
    """The boxes of some regions as they are stored, (3, h, w) uint8; None for those that cannot be decoded."""

    boxes: list[Tensor | None]
    reason: str = ""  # why there is a None, in one line


def decode_regions(regions: Sequence[Region], device: torch.device) -> Decoded:
    """Decode regions on a CUDA device, which does so itself, or on the CPU.

    If the CPU's decoder warns of any of them, all are None, because it does not say of which.
    """
    decode = _decoder(os.getpid(), device)
    warned: list[str] = []
    # the warnings and the standard error of a process with a GPU are also those of its other threads
    listening = nullcontext() if device.type == "cuda" else library_messages(warned, stderr=True)
    try:
        with listening:
            boxes = decode(regions)
    except Exception as error:  # the binding raises many types
        warned.append(f"{type(error).__name__}: {error}")
    if warned:
        return Decoded([None] * len(regions), warned[0].partition("\n")[0])
    return Decoded(boxes, "nvImageCodec cannot decode them" if any(box is None for box in boxes) else "")


def check_decoder(device: torch.device) -> None:
    """Decode a JPEG on the device. ValueError if it cannot."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG")
    region = Region(file.getvalue(), (8, 8, 16, 16), 1, False, ViewSpec(16, "bicubic"))
    found = decode_regions([region], device)
    if found.reason:
        raise ValueError(
            f"run.decode_on = 'device': nvImageCodec cannot decode on {device} ({found.reason}): {install(device)}"
        )


def install(device: torch.device) -> str:
    """Return what a user whose device cannot decode may do. Version 0.8 needs a GPU, and 0.9 crashes on one."""
    if device.type == "cuda":
        return "pip install 'nvidia-nvimgcodec-cu13[all]<0.9' (cu12 for CUDA 12), or remove it"
    return "pip install 'nvidia-nvimgcodec-cu12>=0.9', or remove it"


def in_turn(items: Iterable[T], begin: Callable[[T], D], end: Callable[[T, D], R]) -> Generator[R, None, None]:
    """Yield end(item, begin(item)) for each item."""
    for item in items:
        yield end(item, begin(item))


def in_advance(items: Iterable[T], begin: Callable[[T], D], end: Callable[[T, D], R]) -> Generator[R, None, None]:
    """Yield what `in_turn` yields, but a thread begins the next item while the caller works on what it got.

    An exception of `begin` is raised when its item is due.
    """
    with ThreadPoolExecutor(1, "decode") as thread:
        before: tuple[T, Future[D]] | None = None
        for item in items:
            begun = thread.submit(begin, item)
            if before is not None:
                yield end(before[0], before[1].result())
            before = item, begun
        if before is not None:
            yield end(before[0], before[1].result())


@functools.cache
def _decoder(process: int, device: torch.device) -> Callable[[Sequence[Region]], list[Tensor | None]]:
    """Return this process's decoder for a device. `process` makes the cache per process."""
    on_gpu = device.type == "cuda"
    index = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    with library_messages([], stderr=True):  # without a GPU it complains about missing CUDA libraries
        try:
            codec = importlib.import_module("nvidia.nvimgcodec")
            if on_gpu and codec.__version__.startswith("0.9."):
                raise ValueError(
                    f"run.decode_on = 'device': nvImageCodec {codec.__version__} crashes when a GPU decodes regions of "
                    f"JPEGs (github.com/NVIDIA/nvImageCodec/issues/55): {install(device)}"
                )
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
            raise ValueError(f"run.decode_on = 'device' needs nvImageCodec: {install(device)}") from error

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
