"""Weights by name, released (downloaded once) or of the zoo (part of this package), and the origin of any weights.

RELEASED holds URL, layout, licence, and the published checksum if there is one.

Sources: README, FINETUNE.md, CONFIG.md, MODEL_CARD.md and demo of facebookresearch/{mae, moco-v3, dino, dinov2, deit},
microsoft/unilm (beit), microsoft/esvit, bytedance/ibot and SwinTransformer/Transformer-SSL (MoBY, whose README swaps
two links: the file names are right). MAE publishes the first digits of the md5. DeiT's file names hold the first digits
of the sha256. The others publish no checksum. EsViT's server may ask for an access suffix, which only its README gives.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from mae_transfer.checkpoints.files import metadata, sha256, split
from mae_transfer.disk import cache_folder
from mae_transfer.record import Record, Weights

NON_COMMERCIAL = "CC-BY-NC 4.0"
ZOO = Path(__file__).parents[1] / "zoo"  # small backbones that this project trained
SUMS = "SHA256SUMS"  # in ZOO: a line per weight file, as sha256sum writes it
RECORD = "record"  # key in the metadata of a file that this package wrote
RANDOM = Weights(kind="random", name="none")
_LOG = logging.getLogger(__name__)


class ReleasedFile(NamedTuple):
    """One released file."""

    layout: str  # prefix of checkpoints.LAYOUTS
    url: str
    licence: str  # as its repository states it
    checksum: str | None  # algorithm and published digits, e.g. "md5:8cad7c" or "sha256:a1311bcf"
    folder: str = ""  # of the cache, for releases that give all their files one name
    otherwise: str = ""  # where to get the file if the URL fails


def find_released(name: str) -> ReleasedFile:
    """Return the entry of a name; warn if its licence is non-commercial.

    Raises:
        ValueError: the name is unknown; the message proposes the nearest names.
    """
    if name not in RELEASED:
        near = difflib.get_close_matches(name, RELEASED, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(RELEASED)}"
        raise ValueError(f"no released weights {name!r}; {hint}")
    if RELEASED[name].licence == NON_COMMERCIAL:
        _LOG.warning("%s is under %s: not for commercial use", name, NON_COMMERCIAL)
    return RELEASED[name]


def download(entry: ReleasedFile, *, folder: Path | None = None) -> Path:
    """Return the file of an entry; download it into `folder`, by default the cache, unless it is there.

    Raises:
        ValueError: the checksum is wrong, or the URL cannot be fetched.
    """
    from mae_transfer.download import fetch

    try:
        return fetch(entry.url, (folder or cache_folder()) / entry.folder, checksum=entry.checksum)
    except ValueError as error:
        raise ValueError(f"{error}{entry.otherwise}") from None


def downloaded(reference: str) -> str:
    """Return released:NAME as LAYOUT:PATH of its file, downloaded if need be; any other reference as it is."""
    prefix, _, name = reference.partition(":")
    if prefix != "released":
        return reference
    entry = find_released(name)
    return f"{entry.layout}:{download(entry)}"


def _fair(layout: str, path: str, licence: str, checksum: str | None = None) -> ReleasedFile:
    return ReleasedFile(layout, f"https://dl.fbaipublicfiles.com/{path}", licence, checksum)


def _deit(file: str) -> ReleasedFile:
    return _fair("deit", f"deit/{file}.pth", "Apache-2.0", f"sha256:{file.rpartition('-')[2]}")


def _beit(file: str) -> ReleasedFile:
    return ReleasedFile("beit", f"https://unilm.blob.core.windows.net/beit/{file}.pth", "MIT", None)


def _ibot(model: str, kept: str = "teacher") -> ReleasedFile:
    base = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
    return ReleasedFile("ibot", f"{base}/{model}/checkpoint_{kept}.pth", "Apache-2.0", None, f"ibot_{model}")


def _moby(model: str) -> ReleasedFile:
    base = "https://github.com/SwinTransformer/storage/releases/download/v1.0.3"
    return ReleasedFile("moby", f"{base}/moby_{model}_300ep_pretrained.pth", "MIT", None)


def _esvit(size: str, run: str) -> ReleasedFile:
    url = f"https://chunyleu.blob.core.windows.net/output/ckpts/esvit/swin/swin_{size}/{run}/checkpoint_best.pth"
    readme = (
        "; the server may ask for an access suffix, which the README of microsoft/esvit gives (it expires in 3023): "
        "download the file with the link there, and pass esvit:PATH"
    )
    return ReleasedFile("esvit", url, "MIT", None, f"esvit_{size}_{14 if 'window14' in run else 7}", readme)


def _dinov2(letter: str, registers: str = "") -> ReleasedFile:
    return _fair("dinov2", f"dinov2/dinov2_vit{letter}14/dinov2_vit{letter}14{registers}_pretrain.pth", "Apache-2.0")


RELEASED: dict[str, ReleasedFile] = {
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
    "mae_vit_base_full": _fair("mae-full", "mae/pretrain/mae_pretrain_vit_base_full.pth", NON_COMMERCIAL),
    "mae_vit_large_full": _fair("mae-full", "mae/pretrain/mae_pretrain_vit_large_full.pth", NON_COMMERCIAL),
    "mae_vit_huge_full": _fair("mae-full", "mae/pretrain/mae_pretrain_vit_huge_full.pth", NON_COMMERCIAL),
    "mae_vit_base_visualize": _fair("mae-full", "mae/visualize/mae_visualize_vit_base.pth", NON_COMMERCIAL),
    "mae_vit_large_visualize": _fair("mae-full", "mae/visualize/mae_visualize_vit_large.pth", NON_COMMERCIAL),
    "mae_vit_huge_visualize": _fair("mae-full", "mae/visualize/mae_visualize_vit_huge.pth", NON_COMMERCIAL),
    "moco_v3_vit_small": _fair("moco-v3", "moco-v3/vit-s-300ep/vit-s-300ep.pth.tar", NON_COMMERCIAL),
    "moco_v3_vit_base": _fair("moco-v3", "moco-v3/vit-b-300ep/vit-b-300ep.pth.tar", NON_COMMERCIAL),
    "dino_vit_small_16": _fair("dino", "dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "Apache-2.0"),
    "dino_vit_small_8": _fair("dino", "dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth", "Apache-2.0"),
    "dino_vit_base_16": _fair("dino", "dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth", "Apache-2.0"),
    "dino_vit_base_8": _fair("dino", "dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth", "Apache-2.0"),
    "dinov2_vit_small": _dinov2("s"),
    "dinov2_vit_base": _dinov2("b"),
    "dinov2_vit_large": _dinov2("l"),
    "dinov2_vit_giant": _dinov2("g"),
    "dinov2_vit_small_registers": _dinov2("s", "_reg4"),
    "dinov2_vit_base_registers": _dinov2("b", "_reg4"),
    "dinov2_vit_large_registers": _dinov2("l", "_reg4"),
    "dinov2_vit_giant_registers": _dinov2("g", "_reg4"),
    "ibot_vit_small": _ibot("vits_16"),
    "ibot_vit_base": _ibot("vitb_16"),
    "ibot_vit_base_random": _ibot("vitb_16_rand_mask"),
    "ibot_vit_large": _ibot("vitl_16"),
    "ibot_vit_large_random": _ibot("vitl_16_rand_mask"),
    "ibot_vit_base_22k": _ibot("vitb_16_pt22k", "student"),
    "ibot_vit_large_22k": _ibot("vitl_16_pt22k", "student"),
    "ibot_swin_tiny_7": _ibot("swint_7"),
    "ibot_swin_tiny_14": _ibot("swint_14"),
    "moby_swin_tiny": _moby("swin_t"),
    "moby_deit_small": _moby("deit_small"),
    "esvit_swin_tiny_7": _esvit("tiny", "bl_lr0.0005_gpu16_bs32_dense_multicrop_epoch300"),
    "esvit_swin_small_7": _esvit("small", "bl_lr0.0005_gpu16_bs32_dense_multicrop_epoch300"),
    "esvit_swin_base_7": _esvit("base", "bl_lr0.0005_gpu16_bs32_multicrop_epoch300_dino_aug/continued_from0200_dense"),
    "esvit_swin_tiny_14": _esvit(
        "tiny", "bl_lr0.0005_gpu16_bs32_multicrop_epoch300_dino_aug_window14/continued_from0200_dense"
    ),
    "esvit_swin_small_14": _esvit(
        "small", "bl_lr0.0005_gpu16_bs16_multicrop_epoch300_dino_aug_window14/continued_from0180_dense"
    ),
    "esvit_swin_base_14": _esvit(
        "base",
        "bl_lr0.0005_nodes4_gpu16_bs8_multicrop_epoch300_dino_aug_window14_lv/continued_from_epoch0200_dense_norm_true",
    ),
    "deit_tiny": _deit("deit_tiny_patch16_224-a1311bcf"),
    "deit_small": _deit("deit_small_patch16_224-cd65a155"),
    "deit_base": _deit("deit_base_patch16_224-b5f2ef4d"),
    "deit_base_384": _deit("deit_base_patch16_384-8de9b5d1"),
    "beit_base": _beit("beit_base_patch16_224_pt22k"),
    "beit_large": _beit("beit_large_patch16_224_pt22k"),
    "beit_base_ft22k": _beit("beit_base_patch16_224_pt22k_ft22k"),
    "beit_large_ft22k": _beit("beit_large_patch16_224_pt22k_ft22k"),
    "dalle_encoder": ReleasedFile("dalle", "https://cdn.openai.com/dall-e/encoder.pkl", "Modified MIT", None),
}


def zoo_names() -> list[str]:
    """Return the names of the zoo's models, sorted."""
    return sorted(_sums())


def zoo_file(name: str) -> Path:
    """Return the weight file of a model of the zoo.

    Raises:
        ValueError: no model has this name, or its file is missing or not the one that was released.
    """
    sums = _sums()
    if name not in sums:
        nearest = difflib.get_close_matches(name, sorted(sums), n=len(sums), cutoff=0.0)
        raise ValueError(f"no model {name!r} in the zoo; it has (nearest name first): {', '.join(nearest)}")
    path = ZOO / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing; install mae_transfer again")
    if sha256(path) != sums[name]:
        raise ValueError(
            f"{path} is not the released file: its sha256 is not that in {SUMS}; install mae_transfer again"
        )
    return path


def _sums() -> dict[str, str]:
    """Return the sha256 of each model's file by the model's name."""
    try:
        lines = (ZOO / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{ZOO / SUMS} cannot be read ({error.strerror}); install mae_transfer again") from None
    pairs = (line.split() for line in lines if line.strip())
    return {file.removesuffix(".safetensors"): digest for digest, file in pairs}


def origin(reference: str, layouts: Any, *, sha256: str | None) -> Weights:
    """Return the origin of the weights of a reference.

    A file in the layout of a release is "released" only if its checksum is the published one; its name is no proof.

    Args:
        reference: as in `checkpoints.load`.
        layouts: the known prefixes.
        sha256: digest of the file; None if there is none.
    """
    prefix, rest = split(reference, layouts)
    name, _, path = rest.partition("@") if prefix == "timm" else (rest, "", rest)
    if prefix == "random":
        return RANDOM
    if prefix == "released" or (prefix == "timm" and not path):
        return Weights(
            kind="released", name=name, layout=RELEASED[name].layout if prefix == "released" else prefix, sha256=sha256
        )
    if prefix in ("", "zoo"):
        return _made_here(zoo_file(rest) if prefix else Path(path), sha256=sha256)
    known = _published(Path(path), prefix, sha256)
    return Weights(kind="released" if known else "file", name=known or Path(path).name, layout=prefix, sha256=sha256)


def _made_here(path: Path, *, sha256: str | None) -> Weights:
    """Return the origin of a file that this package wrote; files of earlier versions have no record."""
    about = metadata(path)
    found = about.get(RECORD)
    try:
        record = Record.model_validate(found) if found else None
    except ValidationError:  # a later version wrote the record
        record = None
    name = record.method if record else str(about.get("pretrain", path.name))
    return Weights(kind="run", name=name, sha256=sha256, record=record)


def _published(path: Path, layout: str, sha256: str | None) -> str | None:
    """Return the name of the release whose published checksum the file has."""
    candidates = {
        name: entry.checksum
        for name, entry in RELEASED.items()
        if entry.layout == layout and entry.checksum is not None
    }
    if not candidates or not path.is_file():
        return None
    digests = {"sha256": sha256 or ""}
    if any(checksum.startswith("md5:") for checksum in candidates.values()):
        with path.open("rb") as file:
            digests["md5"] = hashlib.file_digest(file, "md5").hexdigest()
    for name, checksum in candidates.items():
        algorithm, _, digits = checksum.partition(":")
        if digests.get(algorithm, "").startswith(digits):
            return name
    return None
