"""Draw the reconstructions of a pretraining run, or the attention maps of a backbone.

  python tools/visualize.py runs/mini_mae                   (validation images of the run)
  python tools/visualize.py runs/mae_b --images some/folder --mask-ratio 0.75 0.85 0.95
  python tools/visualize.py mae-full:/ckpt/mae_pretrain_vit_large_full.pth --images some/folder \\
      --config configs/pretrain/mae_vit_large_16_1600e.py
  python tools/visualize.py mae:/ckpt/mae_pretrain_vit_base.pth --attention --images some/folder

Each row of a sheet shows: original | masked | reconstruction | reconstruction with the visible
patches pasted in. With --attention it shows: image | mean over heads | each head of one block.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mae_transfer.cli.parser import Parser, config_path, count, path, size
from mae_transfer.disk import at_home


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    what, how = parser.what, parser.how
    weights = "work dir of a pretraining run (its newest checkpoint is drawn); with --attention, any backbone"
    images = "images, nested or not (default: validation images of the run)"
    config = "pretraining config, for weights without one (mae-full:PATH, a single step_*.pt)"
    out = "folder for the PNGs (default: D/reconstructions; with --attention: .)"
    most = "images per sheet, evenly spaced in the folder (default: 16)"
    ratio = "share of hidden patches, one sheet each (default: the run's mask)"
    block = "--attention: block, from 0; negative: from the end (default: the last)"
    pixels = "--attention: pixels per side, or height and width (default: the backbone's own)"
    what.add_argument("run", type=at_home, metavar="D", help=weights)
    what.add_argument("--images", type=path, metavar="FOLDER", help=images)
    what.add_argument("--config", type=config_path, metavar="CONFIG", help=config)
    what.add_argument("--attention", action="store_true", help="draw attention maps instead; needs --images")
    parser.where.add_argument("--out", type=path, metavar="FOLDER", help=out)
    how.add_argument("--most", type=count, default=16, metavar="N", help=most)
    how.add_argument("--mask-ratio", type=float, nargs="+", metavar="R", help=ratio)
    how.add_argument("--block", type=int, default=-1, metavar="B", help=block)
    how.add_argument("--size", type=int, nargs="+", metavar="P", help=pixels)


def run(args: argparse.Namespace) -> None:
    """Draw, and print the names of the pictures."""
    if args.attention and args.images is None:
        raise argparse.ArgumentError(None, "--attention needs --images FOLDER")
    from mae_transfer.tasks.attention import draw_attention
    from mae_transfer.tasks.reconstruct import reconstruct

    out = args.out or (Path() if args.attention or args.config else Path(args.run) / "reconstructions")
    if args.attention:
        pixels = size(args.size)
        print(draw_attention(args.run, args.images, out=out, most=args.most, size=pixels, block=args.block))
        return
    ratios = args.mask_ratio
    for sheet in reconstruct(args.run, args.images, mask_ratios=ratios, out=out, most=args.most, config=args.config):
        print(sheet)
