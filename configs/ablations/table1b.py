"""Table 1b: the decoder's width (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/table1b.py --row all --work-dir runs/table1b \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores at the paper's scale per row (table 2); with --mini a few minutes of CPU per row.
Published: fine-tuning 84.9 / 84.8 / 84.9 / 84.4 / 84.3, linear probe 69.1 / 71.3 / 73.5 / 73.1 / 73.1 (table 1b).
With --mini the widths are 24, 48, 96, 144 and 192.
"""

title = "table 1b"
rows = {
    "128-d": {"model.decoder.dim": 128},
    "256-d": {"model.decoder.dim": 256},
    "512-d": {"model.decoder.dim": 512},
    "768-d": {"model.decoder.dim": 768},
    "1024-d": {"model.decoder.dim": 1024},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(
    base="../mini/pretrain.py",
    overrides={"target.name": "pixel"},
    rows={
        "128-d": {"model.decoder.dim": 24},
        "256-d": {"model.decoder.dim": 48},
        "512-d": {"model.decoder.dim": 96},
        "768-d": {"model.decoder.dim": 144},
        "1024-d": {"model.decoder.dim": 192},
    },
)
