"""Table 1f: mask sampling (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/table1f.py --row all --work-dir runs/table1f \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores at the paper's scale per row (table 2); with --mini a few minutes of CPU per row.
Published: fine-tuning 84.9 / 83.9 / 82.8 / 84.0, linear probe 73.5 / 72.3 / 63.9 / 66.0 (table 1f).
"""

title = "table 1f"
rows = {
    "random 75%": {"mask": {"name": "random", "ratio": 0.75}},
    "block 50%": {"mask": {"name": "block", "ratio": 0.5}},
    "block 75%": {"mask": {"name": "block", "ratio": 0.75}},
    "grid 75%": {"mask": {"name": "grid"}},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(base="../mini/pretrain.py", overrides={"target.name": "pixel"})
