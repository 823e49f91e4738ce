"""Table 1a (decoder depth) of MAE at the paper's scale, ViT-L/16.

Each row is pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/table1a.py --work-dir runs/table1a --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      per row 271 to 395 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained
           (estimated from FLOPs).
Published: fine-tuning 84.8 / 84.9 / 84.9 / 84.9 / 84.4, linear probe 65.5 / 70.0 / 71.9 / 73.5 / 73.3 (table 1a).
"""

title = "table 1a"
tables = ("1a",)
roots = dict(imagenet="data/imagenet")
hours = {"1 block": 271.0, "2 blocks": 282.0, "4 blocks": 305.0, "8 blocks": 350.0, "12 blocks": 395.0}
grid = dict(file="../ablations/table1a.py", scale="paper", data="imagenet", hours=hours, gib=20.0)
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/finetune_vit_large.py", data="imagenet", hours=66.0, gib=10.0),
    "linear": dict(tool="cls_train", config="../classify/linear_probe.py", data="imagenet", hours=39.0, gib=5.0),
}
del hours
