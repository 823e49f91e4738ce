"""Convert a backbone from any supported layout to this package's format or that of another library.

  python tools/export_checkpoint.py beit:beit_base_patch16_224_pt22k.pth --out beit.safetensors
  python tools/export_checkpoint.py runs/mae_b/backbone.safetensors --format hf --out b_hf
  python tools/export_checkpoint.py mae:mae_pretrain_vit_base.pth --format detectron2 --out b.pth
  python tools/export_checkpoint.py b.safetensors --dtype float16 --out b_half.safetensors
  python tools/export_checkpoint.py --list           (prefixes, formats, released weights)

hf writes a directory for transformers. detectron2 writes a file for ViTDet's init_checkpoint.
Half precision halves the file; the weights are float32 again when loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mae_transfer.cli.parser import Parser, path, size
from mae_transfer.disk import at_home

FORMATS = ("ours", "timm", "hf", "detectron2")
DTYPES = ("float32", "float16", "bfloat16")


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    what, how, information = parser.what, parser.how, parser.information
    reference = "a path, or PREFIX:PATH; --list shows the prefixes"
    dtype = "type of the trained parameters in the file (default: float32)"
    resample = "resample position embeddings to images of this side, or height and width"
    heads = "attention heads, if neither the file nor its layout determines them"
    mean = "mean per channel of the pretraining images, in [0, 1]; recorded in the file"
    known = "list prefixes, formats and released weights, and exit"
    licence = "list the released weights with licence and URL, and exit"
    what.add_argument("reference", type=at_home, nargs="?", metavar="REFERENCE", help=reference)
    what.add_argument("--format", default="ours", choices=FORMATS, help="format to write (default: ours)")
    what.add_argument("--dtype", default="float32", choices=DTYPES, help=dtype)
    parser.where.add_argument("--out", type=path, metavar="PATH", help="file to write (hf: directory)")
    how.add_argument("--image-size", type=int, nargs="+", metavar="P", help=resample)
    how.add_argument("--heads", type=int, metavar="N", help=heads)
    how.add_argument("--mean", type=float, nargs="+", metavar="M", help=mean)
    how.add_argument("--std", type=float, nargs="+", metavar="S", help="standard deviation per channel; needs --mean")
    information.add_argument("--list", action="store_true", help=known)
    information.add_argument("--licence", action="store_true", help=licence)


def run(args: argparse.Namespace) -> None:
    """Export a backbone, or print what there is."""
    if args.list or args.licence:
        list_all() if args.list else list_licences()
        return
    if args.reference is None or args.out is None:
        raise argparse.ArgumentError(None, "pass REFERENCE and --out PATH, or --list, or --licence")
    if (args.mean is None) != (args.std is None):
        raise argparse.ArgumentError(None, "pass both --mean and --std, or neither")
    own = None if args.mean is None else (args.mean, args.std)
    changes = {key: value for key, value in (("image_size", size(args.image_size)), ("heads", args.heads)) if value}
    export(args.reference, args.out, name=args.format, changes=changes, own=own, dtype=args.dtype)


def export(
    reference: str,
    out: Path,
    *,
    name: str,
    changes: dict[str, Any],
    own: tuple[list[float], list[float]] | None = None,
    dtype: str = "float32",
) -> None:
    """Convert a backbone and print what was written.

    own: mean and std from the user; they must not contradict recorded ones.
    """
    import torch

    from mae_transfer import checkpoints
    from mae_transfer.core.normalize import check_statistics
    from mae_transfer.tasks.backbones import choose_statistics, pretrain_of

    loaded = checkpoints.load(reference, changes=changes)
    given = check_statistics(*own, where="--mean and --std") if own else None
    known, source = choose_statistics(reference, loaded, given)
    about = checkpoints.training_metadata(reference)
    about |= {"reference": Path(reference).name, "source_sha256": loaded.sha256, "pretrain": pretrain_of(reference)}
    about |= checkpoints.RecordedStatistics(known, loaded.recorded or given is not None).entry()
    checkpoints.to_dtype(loaded.backbone, getattr(torch, dtype), where=reference)
    checkpoints.FORMATS[name](out, loaded.backbone, about)
    params = sum(parameter.numel() for parameter in loaded.backbone.parameters())
    kind = type(loaded.backbone).__name__
    print(f"{out}: {kind}, width {loaded.backbone.dim}, {params / 1e6:.1f} M parameters, format {name}")
    print(f"image statistics: {source}")
    if name == "detectron2":
        mean, std = ([round(255 * value, 3) for value in part] for part in known)
        print(
            "this format does not store image statistics: "
            f"set model.pixel_mean={mean} and model.pixel_std={std} in detectron2's config"
        )
    if loaded.head:
        print(f"not written, because a backbone has no classifier: {', '.join(loaded.head)}")


def list_all() -> None:
    """Print prefixes, formats and weights."""
    from mae_transfer import checkpoints

    print("prefixes:", ", ".join(f"{prefix}:" for prefix in checkpoints.PREFIXES if prefix), "(docs/backbones.md)")
    print("formats:", ", ".join(checkpoints.FORMATS))
    for model in checkpoints.zoo_names():
        print(f"zoo:{model:31} Apache-2.0     part of this package (mae_transfer/zoo/README.md)")
    list_licences()


def list_licences() -> None:
    """Print one line per released file, with its reference `released:NAME`."""
    from mae_transfer import checkpoints

    for name, entry in checkpoints.RELEASED.items():
        print(f"released:{name:26} {entry.licence:14} {entry.checksum or 'no checksum published':22} {entry.url}")
