"""Released weights by name: URL, layout, licence, and the published checksum if there is one.

Sources: README, FINETUNE.md, CONFIG.md, MODEL_CARD.md and demo of facebookresearch/{mae, moco-v3, dino, dinov2, deit}
and microsoft/unilm (beit). MAE publishes the first digits of the md5. DeiT's file names hold the first digits of the
sha256. The others publish no checksum.
"""

from __future__ import annotations

import difflib
import logging
from typing import NamedTuple

NON_COMMERCIAL = "CC-BY-NC 4.0"
LOG = logging.getLogger(__name__)


class Weights(NamedTuple):
    """One released file."""

    layout: str  # prefix of checkpoints.LAYOUTS
    url: str
    licence: str  # as its repository states it
    checksum: str | None  # algorithm and published digits, e.g. "md5:8cad7c" or "sha256:a1311bcf"


def weights(name: str) -> Weights:
    """Return the entry of a name; warn if its licence is non-commercial.

    Raises:
        ValueError: the name is unknown; the message proposes the nearest names.
    """
    if name not in RELEASED:
        near = difflib.get_close_matches(name, RELEASED, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(RELEASED)}"
        raise ValueError(f"no released weights {name!r}; {hint}")
    if RELEASED[name].licence == NON_COMMERCIAL:
        LOG.warning("%s is under %s: not for commercial use", name, NON_COMMERCIAL)
    return RELEASED[name]


def _fair(layout: str, path: str, licence: str, checksum: str | None = None) -> Weights:
    return Weights(layout, f"https://dl.fbaipublicfiles.com/{path}", licence, checksum)


def _deit(file: str) -> Weights:
    return _fair("deit", f"deit/{file}.pth", "Apache-2.0", f"sha256:{file.rpartition('-')[2]}")


def _beit(file: str) -> Weights:
    return Weights("beit", f"https://unilm.blob.core.windows.net/beit/{file}.pth", "MIT", None)


RELEASED: dict[str, Weights] = {
    "mae_vit_base": _fair("mae", "mae/pretrain/mae_pretrain_vit_base.pth", NON_COMMERCIAL, "md5:8cad7c"),
    "mae_vit_large": _fair("mae", "mae/pretrain/mae_pretrain_vit_large.pth", NON_COMMERCIAL, "md5:b8b06e"),
    "mae_vit_huge": _fair("mae", "mae/pretrain/mae_pretrain_vit_huge.pth", NON_COMMERCIAL, "md5:9bdbb0"),
    "mae_vit_base_finetuned": _fair(
        "mae-finetuned", "mae/finetune/mae_finetuned_vit_base.pth", NON_COMMERCIAL, "md5:1b25e9"
    ),
    "mae_vit_large_finetuned": _fair(
        "mae-finetuned", "mae/finetune/mae_finetuned_vit_large.pth", NON_COMMERCIAL, "md5:51f550"
    ),
    "mae_vit_huge_finetuned": _fair(
        "mae-finetuned", "mae/finetune/mae_finetuned_vit_huge.pth", NON_COMMERCIAL, "md5:2541f2"
    ),
    "mae_vit_large_visualize": _fair("mae-full", "mae/visualize/mae_visualize_vit_large.pth", NON_COMMERCIAL),
    "moco_v3_vit_small": _fair("moco-v3", "moco-v3/vit-s-300ep/vit-s-300ep.pth.tar", NON_COMMERCIAL),
    "moco_v3_vit_base": _fair("moco-v3", "moco-v3/vit-b-300ep/vit-b-300ep.pth.tar", NON_COMMERCIAL),
    "dino_vit_small_16": _fair("dino", "dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "Apache-2.0"),
    "dino_vit_small_8": _fair("dino", "dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth", "Apache-2.0"),
    "dino_vit_base_16": _fair("dino", "dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth", "Apache-2.0"),
    "dino_vit_base_8": _fair("dino", "dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth", "Apache-2.0"),
    "dinov2_vit_small": _fair("dinov2", "dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth", "Apache-2.0"),
    "dinov2_vit_base": _fair("dinov2", "dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth", "Apache-2.0"),
    "dinov2_vit_large": _fair("dinov2", "dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth", "Apache-2.0"),
    "deit_tiny": _deit("deit_tiny_patch16_224-a1311bcf"),
    "deit_small": _deit("deit_small_patch16_224-cd65a155"),
    "deit_base": _deit("deit_base_patch16_224-b5f2ef4d"),
    "deit_base_384": _deit("deit_base_patch16_384-8de9b5d1"),
    "beit_base": _beit("beit_base_patch16_224_pt22k"),
    "beit_large": _beit("beit_large_patch16_224_pt22k"),
    "beit_base_ft22k": _beit("beit_base_patch16_224_pt22k_ft22k"),
    "beit_large_ft22k": _beit("beit_large_patch16_224_pt22k_ft22k"),
}
