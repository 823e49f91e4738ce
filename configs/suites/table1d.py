"""Table 1d (reconstruction target) of MAE at the paper's scale: ViT-L/16, every row pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/table1d.py --work-dir runs/table1d --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      per row about 347.0 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained (an estimate from the models' FLOPs).
Published: fine-tuning 84.9 / 85.4 / 84.6 / 85.3, linear probe 73.5 / 73.9 / 72.3 / 71.6 (table 1d).
"""

title = "table 1d"
tables = ("1d",)
roots = dict(imagenet="data/imagenet")
prepare = {"basis": dict(kind="pca", config="../pretrain/mae_vit_large_16_800e.py", data="imagenet", hours=1.0)}
grid = dict(file="../ablations/table1d.py", scale="paper", data="imagenet", hours=347.0, gib=20.0, set={"PCA": {"target": {"name": "pca", "basis": "@basis"}}})
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/finetune_vit_large.py", data="imagenet", hours=66.0, gib=10.0),
    "linear": dict(tool="cls_train", config="../classify/linear_probe.py", data="imagenet", hours=39.0, gib=5.0),
}
