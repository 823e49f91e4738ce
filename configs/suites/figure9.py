"""Figure 9 of MAE: partial fine-tuning of ViT-L/16, the last 0 to 24 blocks.

The backbone is pretrained here on raw pixels for 800 epochs.

Command:   python tools/reproduce.py configs/suites/figure9.py --work-dir runs/figure9 --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      350 h of pretraining and 40 to 66 h per number of blocks on one GPU at 100 TFLOP/s sustained (estimated from
           FLOPs).
Published: 73.5 / 79.1 / 81.0 / 83.1 / 84.2 / 84.4 / 84.6 / 84.7 / 84.9 for 0, half, 1, 2, 4, 6, 12, 18 and 24 blocks
           (figure 9).
"""

title = "figure 9"
tables = ("figure 9",)
roots = dict(imagenet="data/imagenet")
rows = {"MAE": dict(config="../pretrain/mae_vit_large_16_800e.py", set={"target.name": "pixel"}, data="imagenet", hours=350.0, gib=20.0)}
transfer = {
    f"partial-{blocks}": dict(tool="cls_train", config="../classify/partial.py", set={"protocol.tune_blocks": blocks}, data="imagenet", hours=66.0, gib=10.0)
    for blocks in (0, "half", 1, 2, 4, 6, 12, 18, 24)
}
