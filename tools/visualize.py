"""Draw what a pretraining run makes of images (original | masked | reconstruction | pasted into the visible patches), or where a backbone looks.

python tools/visualize.py runs/mini                                                        the run's own validation images
python tools/visualize.py runs/mae_b --images some/folder --mask-ratio 0.75 0.85 0.95     one sheet per ratio
python tools/visualize.py mae-full:/ckpt/mae_pretrain_vit_large_full.pth --config configs/pretrain/mae_vit_large_16_1600e.py --images some/folder
python tools/visualize.py mae:/ckpt/mae_pretrain_vit_base.pth --attention --images some/folder     image | mean over heads | each head, last block
"""

import argparse
import sys
from pathlib import Path

from mae_transfer import cli
from mae_transfer.tasks.attention import draw_attention
from mae_transfer.tasks.reconstruct import reconstruct


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=cli.at_home,
        metavar="D",
        help="the work dir of a pretraining run, finished or not: its newest checkpoint is drawn; with --attention, any backbone",
    )
    parser.add_argument(
        "--images", type=cli.path, metavar="FOLDER", help="images to draw, in any depth of folders; left out: the run's validation images"
    )
    parser.add_argument("--mask-ratio", type=float, nargs="+", metavar="R", help="shares of hidden patches (default: the run's own mask)")
    parser.add_argument("--most", type=cli.count, default=16, metavar="N", help="images per sheet, spread evenly over the folder (default: 16)")
    parser.add_argument("--out", type=cli.path, metavar="FOLDER", help="where the PNGs go (default: D/reconstructions; with --attention, here)")
    parser.add_argument(
        "--config", type=cli.path, metavar="CONFIG", help="the pretraining config of weights without one (mae-full:PATH, a lone step_*.pt)"
    )
    parser.add_argument("--attention", action="store_true", help="draw attention maps instead; needs --images")
    parser.add_argument("--block", type=int, default=-1, help="with --attention: whose, 0-based, negative from the end (default: the last)")
    parser.add_argument(
        "--size", type=int, nargs="+", help="with --attention: pixels per side, or height and width (default: what the backbone was made for)"
    )
    args = parser.parse_args()
    if args.attention and args.images is None:
        parser.error("--attention needs --images FOLDER")

    def draw() -> None:
        if args.attention:
            print(draw_attention(args.run, args.images, out=args.out or Path(), most=args.most, size=cli.size(args.size), block=args.block))
            return
        out = args.out or (Path(args.run) / "reconstructions" if args.config is None else Path())
        for sheet in reconstruct(args.run, args.images, mask_ratios=args.mask_ratio, out=out, most=args.most, config=args.config):
            print(sheet)

    return cli.guarded(draw)


if __name__ == "__main__":
    sys.exit(main())
