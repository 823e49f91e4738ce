"""Draw what a pretraining run makes of images: original | masked | reconstruction | reconstruction with the visible patches pasted.

python tools/visualize.py runs/mini                                                        the run's own validation images
python tools/visualize.py runs/mae_b --images some/folder --mask-ratio 0.75 0.85 0.95     one sheet per ratio
"""

import argparse
import sys
from pathlib import Path

from mae_transfer import cli
from mae_transfer.tasks.reconstruct import reconstruct


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path, metavar="D", help="the work dir of a pretraining run, finished or not: its newest checkpoint is drawn")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to draw, in any depth of folders; left out: the run's validation images"
    )
    parser.add_argument("--mask-ratio", type=float, nargs="+", default=[0.75], metavar="R", help="shares of hidden patches (default: 0.75)")
    parser.add_argument("--most", type=int, default=16, metavar="N", help="images per sheet, spread evenly over the folder (default: 16)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the PNGs go (default: D/reconstructions)")
    args = parser.parse_args()

    def draw() -> None:
        for sheet in reconstruct(
            args.work_dir, args.images, mask_ratios=args.mask_ratio, out=args.out or args.work_dir / "reconstructions", most=args.most
        ):
            print(sheet)

    return cli.guarded(draw)


if __name__ == "__main__":
    sys.exit(main())
