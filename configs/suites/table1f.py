"""Table 1f (mask sampling) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/table1f.py --work-dir runs/table1f --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 350 to 607 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained
           (estimated from FLOPs).
Published: fine-tuning 84.9 / 83.9 / 82.8 / 84.0, linear probe 73.5 / 72.3 / 63.9 / 66.0 (table 1f).
"""

_base_ = "table1a.py"
title = "table 1f"
tables = ("1f",)
hours = {"random 75%": 350.0, "block 50%": 607.0, "block 75%": 350.0, "grid 75%": 350.0}
grid = dict(_delete_=True, file="../ablations/table1f.py", scale="paper", data="imagenet", hours=hours, gib=20.0)
del hours
