"""Table 1c: mask tokens in the encoder (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/table1c.py --row all --work-dir runs/table1c \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      42.4 h with mask tokens and 15.4 h without on 128 TPU-v3 cores at the paper's scale (table 2); with --mini a
           few minutes of CPU per row.
Published: fine-tuning 84.2 / 84.9, linear probe 59.6 / 73.5, 3.3x / 1x the FLOPs (table 1c).
"""

title = "table 1c"
rows = {
    "encoder w/ [M]": {"model.corrupt": "mask_token"},
    "encoder w/o [M]": {},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(base="../mini/pretrain.py", overrides={"target.name": "pixel"})
