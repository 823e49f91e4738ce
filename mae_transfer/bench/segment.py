"""The benchmarks `segment` (steps of UperNet, ours and mmseg's as in mmengine's Runner) and `slide` (inference).

Legend: B batch, S pixels per side of a crop.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mae_transfer.adapters.mmseg import HeadConfig, Segmenter, fcn_head, quiet, uper_head
from mae_transfer.bench.harness import Comparison, Contestant, random_images, stopwatch
from mae_transfer.bench.options import Workload
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.data.maps import MapBatch, inside
from mae_transfer.engine.state import autocast
from mae_transfer.models.vit import SIZES, ViT, ViTConfig
from mae_transfer.tasks.segment_inference import PUBLISHED_SCALES, Windows, logits
from mae_transfer.tasks.segment_protocols import UperNet

CLASSES = 150
OURS = "mae_transfer"
PEER = "mmseg.train_step"
ONE_BY_ONE = "mmseg.slide_inference"
TAPS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23), 32: (7, 15, 23, 31)}  # depth -> taps


def build_ours(work: Workload) -> Contestant:
    """Build our step."""
    model = _build_upernet(work)
    images, labels = _draw_batch(work)
    batch = MapBatch(
        images, labels, torch.full((work.batch, 2), work.image, device=work.device), torch.arange(work.batch)
    )

    def loss() -> Tensor:
        given = normalize(batch.image, IMAGENET) * inside(batch.extent, batch.image.shape[-1])
        return torch.stack([*model.losses(model(given), batch.labels).values()]).sum()

    return Contestant(model, loss, blocks=True)


def build_mmseg(work: Workload) -> Contestant:
    """Build the same step with mmseg: its preprocessor, MAE backbone and heads, `loss` (with accuracy), `parse_losses`.

    Its input has the format of mmseg's collate function.
    """
    dim, depth, heads = SIZES[work.size]
    widths = [dim] * 4
    backbone = {
        "type": "MAE", "img_size": work.image, "patch_size": work.patch, "embed_dims": dim, "num_layers": depth,
        "num_heads": heads, "out_indices": TAPS[depth], "drop_path_rate": 0.1, "init_values": 1.0,
    }  # fmt: skip
    neck = {"type": "Feature2Pyramid", "embed_dim": dim, "rescales": [4, 2, 1, 0.5], "norm_cfg": {"type": "BN"}}
    model = _build_mmseg_model(
        work, backbone, neck, uper_head(widths, CLASSES, channels=dim), fcn_head(widths, CLASSES)
    )
    images, labels = _draw_batch(work)
    with quiet():
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

    samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None].long())) for one in labels]

    def loss() -> Tensor:
        prepared = model.data_preprocessor({"inputs": list(images), "data_samples": samples}, training=True)
        value: Tensor = model.parse_losses(model(**prepared, mode="loss"))[0]
        return value

    return Contestant(model, loss)


def _build_upernet(work: Workload) -> Segmenter:
    protocol = UperNet(
        taps=TAPS[SIZES[work.size][1]], relative_positions="per_block", positions="learned", layer_scale=1.0
    )
    encoder = {"size": work.size, "patch": work.patch, "image_size": work.image, **protocol.changes()}
    return protocol.model(ViT(ViTConfig.model_validate(encoder)), CLASSES)


def _build_mmseg_model(
    work: Workload, backbone: HeadConfig, neck: HeadConfig, decode: HeadConfig, auxiliary: HeadConfig
) -> Any:
    with quiet():
        import mmseg.models  # noqa: F401  # fills the registry
        from mmseg.models.data_preprocessor import SegDataPreProcessor
        from mmseg.models.segmentors import EncoderDecoder

        mean, std = ([255 * value for value in values] for values in IMAGENET)
        preprocessor = SegDataPreProcessor(
            mean=mean, std=std, size=(work.image, work.image), bgr_to_rgb=True, pad_val=0, seg_pad_val=255
        )
        return EncoderDecoder(
            backbone, decode, neck=neck, auxiliary_head=auxiliary, train_cfg={}, test_cfg={},
            data_preprocessor=preprocessor,
        )  # fmt: skip


def _draw_batch(work: Workload) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) and labels (B, S, S), both uint8."""
    labels = torch.randint(CLASSES, (work.batch, work.image, work.image), device=work.device).to(torch.uint8)
    return random_images(work), labels


COMPARISON = Comparison({OURS: build_ours, PEER: build_mmseg}, "ratio_to_mmseg", PEER)


def slide(work: Workload, *, rounds: int) -> list[dict[str, Any]]:
    """Time sliding-window inference on one model: in batches of `work.batch`, one by one, and with mmseg's loop.

    The variants alternate. The images have a ratio of 4:3; their height is that of a window (`work.image`), then that
    of the largest published scale. `largest_difference` compares the logits with mmseg's.
    """
    torch.manual_seed(0)
    model = _build_upernet(work).to(work.device).eval()
    stride = work.image * 2 // 3
    with quiet():
        from mmengine.config import ConfigDict
    model.net.test_cfg = ConfigDict(mode="slide", crop_size=(work.image, work.image), stride=(stride, stride))
    records = []
    for height in (work.image, round(work.image * max(PUBLISHED_SCALES))):
        image = torch.randn(1, 3, height, height * 4 // 3, device=work.device)
        sides = {"ori_shape": image.shape[2:], "img_shape": image.shape[2:]}
        variants: dict[tuple[str, int], Callable[[], Tensor]] = {
            (ONE_BY_ONE, 1): partial(model.net.slide_inference, image, [sides])
        }
        for batch in sorted({1, work.batch}):
            variants[OURS, batch] = partial(logits, model, image, Windows(work.image, stride, 1, batch))
        records += _timed(variants, work, rounds=rounds, image=f"{height} x {height * 4 // 3}")
    return records


def _timed(
    variants: Mapping[tuple[str, int], Callable[[], Tensor]], work: Workload, *, rounds: int, image: str
) -> list[dict[str, Any]]:
    """Return a record per variant: (name, windows per pass) -> function that returns logits.

    The ratio is the median over rounds of the seconds of the first variant to its own.
    """
    seconds: dict[tuple[str, int], list[float]] = {variant: [] for variant in variants}
    found: dict[tuple[str, int], Tensor] = {}
    for number in range(-1, rounds):  # the first turn is a warm-up
        for variant in list(variants) if number % 2 else list(variants)[::-1]:
            with stopwatch(work.device) as elapsed, torch.no_grad(), autocast(work.dtype, torch.device(work.device)):
                found[variant] = variants[variant]()
            seconds[variant] += [elapsed[0].wall] if number >= 0 else []
    (first, *_) = variants
    return [
        {
            "name": name,
            "image": image,
            "windows_per_pass": batch,
            "seconds": statistics.median(taken),
            "seconds_rounds": taken,
            "ratio_to_mmseg": statistics.median(
                reference / own for reference, own in zip(seconds[first], taken, strict=True)
            ),
            "largest_difference": float((found[name, batch] - found[first]).abs().max()),
        }
        for (name, batch), taken in seconds.items()
    ]
