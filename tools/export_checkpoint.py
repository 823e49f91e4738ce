"""Rewrite a backbone: any layout in; this suite's, timm's, transformers' or detectron2's names out.

python tools/export_checkpoint.py beit:beit_base_patch16_224_pt22k.pth --out beit.safetensors
python tools/export_checkpoint.py runs/mae_b/backbone.safetensors --format hf --out mae_b_hf                a directory for transformers
python tools/export_checkpoint.py mae:mae_pretrain_vit_base.pth --format detectron2 --out mae_b.pth         for ViTDet's init_checkpoint
python tools/export_checkpoint.py --licence                                                                 the released weights known by name
"""

import argparse
import sys
from pathlib import Path

from mae_transfer import checkpoints, cli


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
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="resample position tables to images of this side")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, where neither file nor layout tells them")
    parser.add_argument("--licence", action="store_true", help="list the released weights with licence and address, and end")
    args = parser.parse_args()
    if args.licence:
        return cli.guarded(list_licences)
    if args.reference is None or args.out is None:
        parser.error("name a REFERENCE and --out PATH, or --licence")
    changes = {key: value for key, value in (("image_size", args.image_size), ("heads", args.heads)) if value}
    return cli.guarded(lambda: export(args.reference, args.out, name=args.format, changes=changes))


def export(reference: str, out: Path, *, name: str, changes: dict[str, int]) -> None:
    """Read, write, and say what was not written."""
    loaded = checkpoints.load(reference, changes=changes)
    checkpoints.FORMATS[name](out, loaded.backbone, {"reference": Path(reference).name, "source_sha256": loaded.sha256})
    params = sum(parameter.numel() for parameter in loaded.backbone.parameters())
    print(f"{out}: {type(loaded.backbone).__name__}, width {loaded.backbone.dim}, {params / 1e6:.1f} M parameters, format {name}")
    if loaded.head:
        print(f"not written, for a backbone has no classifier: {', '.join(loaded.head)}")


def list_licences() -> None:
    """Print a line per released file; `released:NAME` is a reference to it."""
    for name, entry in checkpoints.RELEASED.items():
        print(f"released:{name:26} {entry.licence:14} {entry.checksum or 'no checksum published':22} {entry.url}")


if __name__ == "__main__":
    sys.exit(main())
