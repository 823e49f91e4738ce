"""Table 1d (reconstruction target) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/table1d.py --work-dir runs/table1d --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 350 to 390 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained
           (estimated from FLOPs).
Published: fine-tuning 84.9 / 85.4 / 84.6 / 85.3, linear probe 73.5 / 73.9 / 72.3 / 71.6 (table 1d).
"""

_base_ = "table1a.py"
title = "table 1d"
tables = ("1d",)
prepare = {"basis": dict(kind="pca", config="../pretrain/mae_vit_large_16_800e.py", data="imagenet", hours=1.0)}
hours = {"pixel (w/o norm)": 350.0, "pixel (w/ norm)": 350.0, "PCA": 350.0, "dVAE token": 390.0}
grid = dict(_delete_=True, file="../ablations/table1d.py", scale="paper", data="imagenet", hours=hours, gib=20.0, set={"PCA": {"target": {"name": "pca", "basis": "@basis"}}})
del hours
