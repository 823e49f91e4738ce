"""Segment images with a pretrained backbone: UperNet, a linear head on the frozen encoder, or k-NN
and logistic regression on its patches.

  python tools/seg_train.py configs/segment/mini.py --work-dir runs/seg     (generated scenes, CPU)
  python tools/seg_train.py configs/segment/upernet_vit_base_160k.py --work-dir D \\
      --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/ADEChallengeData2016
  python tools/seg_train.py configs/segment/upernet_beit_base_160k.py --work-dir D \\
      --backbone beit:beit_base_pt22k.pth --set data.root=/data/ADEChallengeData2016
  python tools/seg_train.py configs/segment/frozen_knn.py --work-dir D \\
      --backbone timm:vit_base_patch16_224.dino --set data.root=/data/ADEChallengeData2016
  python tools/seg_train.py CONFIG --eval --checkpoint D/checkpoints/step_00160000.pt \\
      --multi-scale --visualize 20 --work-dir D_ms
  torchrun --nproc-per-node 8 tools/seg_train.py CONFIG --backbone REF --work-dir D --resume

D will hold checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png,
tensorboard/, segmentations/ (image | ground truth | prediction) and results.jsonl (mIoU, mAcc,
aAcc). Data use ADE20K's layout: images/{training,validation}/*.jpg and
annotations/{training,validation}/*.png.
"""

from __future__ import annotations

import argparse

from mae_transfer.cli.parser import Parser
from mae_transfer.cli.training import add_pictures, add_transfer_options, transfer
from mae_transfer.tasks.entries import SEGMENT


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_transfer_options(parser)
    add_pictures(parser)
    scales = "average over the published scales, 0.5 to 1.75, and mirrored images"
    parser.how.add_argument("--multi-scale", action="store_true", help=scales)


def run(args: argparse.Namespace) -> None:
    """Train a segmenter, or evaluate one."""
    if not args.multi_scale:
        transfer(args, SEGMENT)
        return
    from mae_transfer.tasks.segment import MULTI_SCALE

    transfer(args, SEGMENT, changes=MULTI_SCALE)
