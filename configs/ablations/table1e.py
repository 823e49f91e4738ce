"""Table 1e: data augmentation (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/table1e.py --row all --work-dir runs/table1e \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores at the paper's scale per row (table 2); with --mini a few minutes of CPU per row.
Published: fine-tuning 84.0 / 84.7 / 84.9 / 84.3, linear probe 65.7 / 73.1 / 73.5 / 71.9 (table 1e).
The paper does not state the strength of the colour jitter; 0.4 is BEiT's.
"""

title = "table 1e"
rows = {
    "none": {"data.augmentation": {"name": "none"}},
    "crop, fixed size": {"data.augmentation": {"name": "fixed_crop"}},
    "crop, rand size": {"data.augmentation": {"name": "random_crop", "scale": (0.2, 1.0)}},
    "crop + color jit": {"data.augmentation": {"name": "random_crop", "scale": (0.2, 1.0), "jitter": 0.4}},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(base="../mini/pretrain.py", overrides={"target.name": "pixel"})
