"""Detect objects with a pretrained backbone: Mask R-CNN on COCO-format data.

  python tools/det_train.py configs/detect/mini.py --work-dir runs/det      (generated scenes, CPU)
  python tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_100ep.py \\
      --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco --work-dir runs/det_b
  python tools/det_train.py CONFIG --eval --checkpoint runs/det_b/checkpoints/step_00184375.pt \\
      --visualize 20 --work-dir runs/det_b_eval
  torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vitdet_base_100ep.py \\
      --backbone REF --set engine=detectron2 --work-dir D

D will hold checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png,
tensorboard/, predictions.json (COCO's result format), detections/ (ground truth and predictions)
and results.jsonl (box and mask AP, AP50, AP75, by size, AR). Data use COCO 2017's layout:
train2017/, val2017/ and annotations/instances_*.json; docs/data.md shows other names and data with
boxes only. tools/prepare_data.py downloads COCO and checks your own data. The heads are
torchvision's, or detectron2's with engine=detectron2; docs/results/detect.md compares the two.
"""

from __future__ import annotations

import argparse

from mae_transfer.cli.parser import Parser
from mae_transfer.cli.training import add_pictures, add_transfer_options, transfer
from mae_transfer.tasks.entries import DETECT


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_transfer_options(parser)
    add_pictures(parser)


def run(args: argparse.Namespace) -> None:
    """Train a detector, or evaluate one."""
    transfer(args, DETECT)
