"""Figure 7 (length of pretraining) of MAE at the paper's scale: ViT-L/16, every row pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/figure7.py --work-dir runs/figure7 --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      per row about 347.0 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained (an estimate from the models' FLOPs).
Published: fine-tuning 82.3 / 83.3 / 84.3 / 84.9 / 85.1, linear probe 57.3 / 64.4 / 69.7 / 73.5 / 75.1 (figure 7).
"""

title = "figure 7"
tables = ("figure 7",)
roots = dict(imagenet="data/imagenet")
grid = dict(file="../ablations/figure7.py", scale="paper", data="imagenet", hours=347.0, gib=20.0)
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/finetune_vit_large.py", data="imagenet", hours=66.0, gib=10.0),
    "linear": dict(tool="cls_train", config="../classify/linear_probe.py", data="imagenet", hours=39.0, gib=5.0),
}
