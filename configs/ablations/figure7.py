"""Figure 7: the length of pretraining (MAE, arXiv 2111.06377). ViT-L/16, 100 to 1600 epochs, raw pixels.

Command:   python tools/pretrain.py configs/ablations/figure7.py --row all --work-dir runs/figure7 \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores per 800 epochs at the paper's scale (table 2); with --mini a few minutes of CPU
           per row.
Published: fine-tuning 82.3 / 83.3 / 84.3 / 84.9 / 85.1, linear probe 57.3 / 64.4 / 69.7 / 73.5 / 75.1 (figure 7).
With --mini the epochs are 2.5, 5, 10, 20 and 40.
"""

title = "figure 7"
rows = {
    "100 epochs": {"epochs": 100},
    "200 epochs": {"epochs": 200},
    "400 epochs": {"epochs": 400},
    "800 epochs": {"epochs": 800},
    "1600 epochs": {"epochs": 1600},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={"target.name": "pixel"})
mini = dict(
    base="../mini/pretrain.py",
    overrides={"target.name": "pixel"},
    rows={
        "100 epochs": {"epochs": 2.5},
        "200 epochs": {"epochs": 5.0},
        "400 epochs": {"epochs": 10.0},
        "800 epochs": {"epochs": 20.0},
        "1600 epochs": {"epochs": 40.0},
    },
)
