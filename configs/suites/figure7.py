"""Figure 7 (length of pretraining) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/figure7.py --work-dir runs/figure7 --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 44 to 699 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained
           (estimated from FLOPs).
Published: fine-tuning 82.3 / 83.3 / 84.3 / 84.9 / 85.1, linear probe 57.3 / 64.4 / 69.7 / 73.5 / 75.1 (figure 7).
"""

_base_ = "table1a.py"
title = "figure 7"
tables = ("figure 7",)
hours = {"100 epochs": 44.0, "200 epochs": 87.0, "400 epochs": 175.0, "800 epochs": 350.0, "1600 epochs": 699.0}
grid = dict(_delete_=True, file="../ablations/figure7.py", scale="paper", data="imagenet", hours=hours, gib=20.0)
del hours
