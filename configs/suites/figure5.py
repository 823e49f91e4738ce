"""Figure 5 (mask ratio) of MAE at the paper's scale: ViT-L/16, every row pretrained, fine-tuned and linearly probed.

Command:   python tools/reproduce.py configs/suites/figure5.py --work-dir runs/figure5 --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      per row about 347.0 h to pretrain, 66 h to fine-tune and 39 h to probe on one GPU at 100 TFLOP/s sustained (an estimate from the models' FLOPs).
Published: fine-tuning 83.2 to 85.0, linear probe 54.6 to 73.5 (figure 5).
"""

title = "figure 5"
tables = ("figure 5",)
roots = dict(imagenet="data/imagenet")
grid = dict(file="../ablations/figure5.py", scale="paper", data="imagenet", hours=347.0, gib=20.0)
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/finetune_vit_large.py", data="imagenet", hours=66.0, gib=10.0),
    "linear": dict(tool="cls_train", config="../classify/linear_probe.py", data="imagenet", hours=39.0, gib=5.0),
}
