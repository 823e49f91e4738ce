"""Figure 5 (mask ratio) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/figure5.py --work-dir runs/figure5 --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 199 to 1024 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained
           (estimated from FLOPs).
Published: fine-tuning 83.2 to 85.0, linear probe 54.6 to 73.5 (figure 5).
"""

_base_ = "table1a.py"
title = "figure 5"
tables = ("figure 5",)
hours = {"10%": 1024.0, "20%": 922.0, "30%": 814.0, "40%": 713.0, "50%": 607.0, "60%": 501.0, "70%": 402.0, "75%": 350.0, "80%": 298.0, "90%": 199.0}
grid = dict(_delete_=True, file="../ablations/figure5.py", scale="paper", data="imagenet", hours=hours, gib=20.0)
del hours
