"""Draw the reconstructions of a pretraining run, or the attention maps of a backbone.

  python tools/visualize.py runs/mini                       (validation images of the run)
  python tools/visualize.py runs/mae_b --images some/folder --mask-ratio 0.75 0.85 0.95
  python tools/visualize.py mae-full:/ckpt/mae_pretrain_vit_large_full.pth --images some/folder \\
      --config configs/pretrain/mae_vit_large_16_1600e.py
  python tools/visualize.py mae:/ckpt/mae_pretrain_vit_base.pth --attention --images some/folder

Each row of a sheet shows: original | masked | reconstruction | reconstruction with the visible
patches pasted in. With --attention it shows: image | mean over heads | each head of one block.
"""

import argparse
import sys
from pathlib import Path

from mae_transfer import cli


def parser() -> cli.Parser:
    found = cli.Parser(description=__doc__)
    what, where, how = found.what, found.where, found.how
    run = "work dir of a pretraining run (its newest checkpoint is drawn); with --attention, any backbone"
    what.add_argument("run", type=cli.at_home, metavar="D", help=run)
    what.add_argument(
        "--images",
        type=cli.path,
        metavar="FOLDER",
        help="images, nested or not (default: validation images of the run)",
    )
    what.add_argument(
        "--config",
        type=cli.config_path,
        metavar="CONFIG",
        help="pretraining config, for weights without one (mae-full:PATH, a single step_*.pt)",
    )
    what.add_argument("--attention", action="store_true", help="draw attention maps instead; needs --images")
    where.add_argument(
        "--out",
        type=cli.path,
        metavar="FOLDER",
        help="folder for the PNGs (default: D/reconstructions; with --attention: .)",
    )
    how.add_argument(
        "--most",
        type=cli.count,
        default=16,
        metavar="N",
        help="images per sheet, evenly spaced in the folder (default: 16)",
    )
    how.add_argument(
        "--mask-ratio",
        type=float,
        nargs="+",
        metavar="R",
        help="share of hidden patches, one sheet each (default: the run's mask)",
    )
    how.add_argument(
        "--block",
        type=int,
        default=-1,
        metavar="B",
        help="--attention: block, from 0; negative: from the end (default: the last)",
    )
    size = "--attention: pixels per side, or height and width (default: the backbone's own)"
    how.add_argument("--size", type=int, nargs="+", metavar="P", help=size)
    return found


def main() -> int:
    options = parser()
    args = options.parse_args()
    if args.attention and args.images is None:
        options.error("--attention needs --images FOLDER")
    return cli.guarded(lambda: draw(args))


def draw(args: argparse.Namespace) -> None:
    from mae_transfer.tasks.attention import draw_attention
    from mae_transfer.tasks.reconstruct import reconstruct

    if args.attention:
        print(
            draw_attention(
                args.run,
                args.images,
                out=args.out or Path(),
                most=args.most,
                size=cli.size(args.size),
                block=args.block,
            )
        )
        return
    out = args.out or (Path(args.run) / "reconstructions" if args.config is None else Path())
    for sheet in reconstruct(
        args.run, args.images, mask_ratios=args.mask_ratio, out=out, most=args.most, config=args.config
    ):
        print(sheet)


if __name__ == "__main__":
    sys.exit(main())
