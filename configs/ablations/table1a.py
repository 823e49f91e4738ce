"""Table 1a: the decoder's depth (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/table1a.py --row all --work-dir runs/table1a \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores at the paper's scale per row (table 2); with --mini a few minutes of CPU per row.
Published: fine-tuning 84.8 / 84.9 / 84.9 / 84.9 / 84.4, linear probe 65.5 / 70.0 / 71.9 / 73.5 / 73.3 (table 1a).
"""

title = "table 1a"
rows = {
    "1 block": {"model.decoder.depth": 1},
    "2 blocks": {"model.decoder.depth": 2},
    "4 blocks": {"model.decoder.depth": 4},
    "8 blocks": {"model.decoder.depth": 8},
    "12 blocks": {"model.decoder.depth": 12},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(base="../mini/pretrain.py", overrides={"target.name": "pixel"})
