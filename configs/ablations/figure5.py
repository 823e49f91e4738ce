"""Figure 5: the mask ratio (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/figure5.py --row all --work-dir runs/figure5 \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores at the paper's scale for 75 % (table 2), more at lower ratios; with --mini a few
           minutes of CPU per row.
Published: fine-tuning 83.2 83.4 83.4 84.7 84.9 85.0 84.9 84.9 84.5 83.0, linear probe 54.6 58.9 61.7 67.0 69.9 71.8
           73.2 73.5 71.8 66.1 (figure 5).
"""

title = "figure 5"
rows = {
    "10%": {"mask.ratio": 0.1},
    "20%": {"mask.ratio": 0.2},
    "30%": {"mask.ratio": 0.3},
    "40%": {"mask.ratio": 0.4},
    "50%": {"mask.ratio": 0.5},
    "60%": {"mask.ratio": 0.6},
    "70%": {"mask.ratio": 0.7},
    "75%": {"mask.ratio": 0.75},
    "80%": {"mask.ratio": 0.8},
    "90%": {"mask.ratio": 0.9},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(base="../mini/pretrain.py", overrides={"target.name": "pixel"})
