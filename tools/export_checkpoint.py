"""Rewrite a backbone: any layout in; this suite's, timm's, transformers' or detectron2's names out.

python tools/export_checkpoint.py beit:beit_base_patch16_224_pt22k.pth --out beit.safetensors
python tools/export_checkpoint.py runs/mae_b/backbone.safetensors --format hf --out mae_b_hf                a directory for transformers
python tools/export_checkpoint.py mae:mae_pretrain_vit_base.pth --format detectron2 --out mae_b.pth         for ViTDet's init_checkpoint
python tools/export_checkpoint.py --licence                                                                 the released weights known by name
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mae_transfer import checkpoints, cli
from mae_transfer.core.normalize import checked
from mae_transfer.tasks.backbones import pretrain_of, settle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "reference",
        type=cli.at_home,
        nargs="?",
        metavar="REFERENCE",
        help=f"a path, or PREFIX:PATH with {', '.join(filter(None, checkpoints.LAYOUTS))}",
    )
    parser.add_argument("--out", type=cli.path, metavar="PATH", help="file to write (hf: directory)")
    parser.add_argument("--format", default="ours", choices=checkpoints.FORMATS, help="whose names (default: ours)")
    parser.add_argument(
        "--image-size", type=int, nargs="+", metavar="PIXELS", help="resample position tables to images of this side, or of this height and width"
    )
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, where neither file nor layout tells them")
    parser.add_argument("--mean", type=float, nargs="+", metavar="M", help="mean per channel on [0, 1] of the images that the weights learned from")
    parser.add_argument("--std", type=float, nargs="+", metavar="S", help="standard deviation, likewise: both are recorded with the weights")
    parser.add_argument("--licence", action="store_true", help="list the released weights with licence and address, and end")
    args = parser.parse_args()
    if args.licence:
        return cli.guarded(list_licences)
    if args.reference is None or args.out is None:
        parser.error("name a REFERENCE and --out PATH, or --licence")
    if (args.mean is None) != (args.std is None):
        parser.error("give --mean and --std, or neither")

    def run() -> None:
        own = None if args.mean is None else (args.mean, args.std)
        changes = {key: value for key, value in (("image_size", cli.size(args.image_size)), ("heads", args.heads)) if value}
        export(args.reference, args.out, name=args.format, changes=changes, own=own)

    return cli.guarded(run)


def export(reference: str, out: Path, *, name: str, changes: dict[str, Any], own: tuple[list[float], list[float]] | None = None) -> None:
    """Read, write, and say what was not written. own: mean and std that the user knows of; they must not contradict recorded ones."""
    loaded = checkpoints.load(reference, changes=changes)
    given = checked(*own, where="--mean and --std") if own else None
    known, said = settle(reference, loaded, given)
    about = {"reference": Path(reference).name, "source_sha256": loaded.sha256, "pretrain": pretrain_of(reference)}
    about |= checkpoints.statistics.entry(checkpoints.statistics.Said(known, loaded.recorded or given is not None))
    checkpoints.FORMATS[name](out, loaded.backbone, about)
    params = sum(parameter.numel() for parameter in loaded.backbone.parameters())
    print(f"{out}: {type(loaded.backbone).__name__}, width {loaded.backbone.dim}, {params / 1e6:.1f} M parameters, format {name}")
    print(f"its images: {said}")
    if name == "detectron2":
        mean, std = ([round(255 * value, 3) for value in part] for part in known)
        print(f"which this format does not hold: set model.pixel_mean={mean} and model.pixel_std={std} in detectron2's config")
    if loaded.head:
        print(f"not written, for a backbone has no classifier: {', '.join(loaded.head)}")


def list_licences() -> None:
    """Print a line per released file; `released:NAME` is a reference to it."""
    for name, entry in checkpoints.RELEASED.items():
        print(f"released:{name:26} {entry.licence:14} {entry.checksum or 'no checksum published':22} {entry.url}")


if __name__ == "__main__":
    sys.exit(main())
