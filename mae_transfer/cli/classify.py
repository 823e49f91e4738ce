"""Classify images with a pretrained backbone: fine-tuning, partial fine-tuning, linear and attentive
probes, k-NN, ridge and logistic regression, statistics of features.

  python tools/cls_train.py configs/classify/finetune_vit_base.py --work-dir runs/ft \\
      --backbone runs/mae_b/backbone.safetensors --set data.root=/data/imagenet
  python tools/cls_train.py configs/classify/partial.py --work-dir runs/part4 \\
      --backbone mae:mae_pretrain_vit_large.pth --set protocol.tune_blocks=4
  python tools/cls_train.py configs/classify/linear_probe.py --work-dir runs/lin \\
      --backbone moco-v3:vit-b-300ep.pth.tar
  python tools/cls_train.py configs/classify/knn.py --work-dir runs/knn \\
      --backbone timm:vit_base_patch16_224.dino
  python tools/cls_train.py configs/classify/finetune_vit_base.py \\
      --eval --checkpoint mae-finetuned:mae_finetuned_vit_base.pth
  python tools/cls_train.py configs/classify/robustness.py --set variants=... \\
      --eval --checkpoint mae-finetuned:mae_finetuned_vit_base.pth
  torchrun --nproc-per-node 8 tools/cls_train.py CONFIG --backbone REF --work-dir D --resume

D will hold checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png,
tensorboard/ and results.jsonl (numbers). data.root is the folder of the data set:
train/<class>/*.jpg and val/<class>/*.jpg.
"""

from __future__ import annotations

import argparse

from mae_transfer.cli.parser import Parser
from mae_transfer.cli.training import add_transfer_options, transfer
from mae_transfer.tasks.entries import CLASSIFY


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_transfer_options(parser, released=", or mae-finetuned:PATH")


def run(args: argparse.Namespace) -> None:
    """Run the task that the config names."""
    transfer(args, CLASSIFY)
