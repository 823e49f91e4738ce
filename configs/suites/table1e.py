"""Table 1e (augmentation) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/table1e.py --work-dir runs/table1e --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 350 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained (estimated
           from FLOPs).
Published: fine-tuning 84.0 / 84.7 / 84.9 / 84.3, linear probe 65.7 / 73.1 / 73.5 / 71.9 (table 1e).
"""

_base_ = "table1a.py"
title = "table 1e"
tables = ("1e",)
grid = dict(_delete_=True, file="../ablations/table1e.py", scale="paper", data="imagenet", hours=350.0, gib=20.0)
