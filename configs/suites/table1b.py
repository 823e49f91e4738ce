"""Table 1b (decoder width) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/table1b.py --work-dir runs/table1b --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 267 to 604 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained
           (estimated from FLOPs).
Published: fine-tuning 84.9 / 84.8 / 84.9 / 84.4 / 84.3, linear probe 69.1 / 71.3 / 73.5 / 73.1 / 73.1 (table 1b).
"""

_base_ = "table1a.py"
title = "table 1b"
tables = ("1b",)
hours = {"128-d": 267.0, "256-d": 284.0, "512-d": 350.0, "768-d": 456.0, "1024-d": 604.0}
grid = dict(_delete_=True, file="../ablations/table1b.py", scale="paper", data="imagenet", hours=hours, gib=20.0)
del hours
