"""Compares pretraining targets at a small scale, with three seeds.

Raw and normalised pixels, PCA, tokens and random weights. Tiny-ImageNet for pretraining and classification, generated
scenes for detection (a small COCO subset cannot rank anything), CamVid for segmentation.

Command:   python tools/reproduce.py configs/suites/small.py --work-dir runs/small --root tiny=/data/tinyimagenet \
           --root camvid=/data/camvid
Cost:      about 50 hours of one CPU core (4 pretrainings of 25 epochs at 1.1 h, 67 other runs; from docs/results), or
           hours on one GPU; 8 GB.
Published: none at this scale. It is a small version of MAE's tables 1d, 3, 4, 5, 7 and figure 9.
"""

title = "small"
device = "CPU core"
tables = ("1d", "3", "4", "5", "7", "12", "knn", "figure 9", "2")
seeds = (0, 1, 2)
roots = dict(tiny="data/tinyimagenet", camvid="data/camvid")
prepare = {
    "tokens": dict(kind="dvae", config="../tokenizer/tokens_64px.py", data="tiny", hours=1.0),
    "basis": dict(kind="pca", config="../pretrain/mae_small_64px.py", data="tiny", hours=0.05),
}
epochs = {"epochs": 25}
rows = {
    "pixel (w/ norm)": dict(config="../pretrain/mae_small_64px.py", set=epochs, data="tiny", hours=1.1, gib=0.2),
    "pixel (w/o norm)": dict(config="../pretrain/mae_small_64px.py", set={**epochs, "target": {"name": "pixel"}}, data="tiny", hours=1.1, gib=0.2),
    "PCA": dict(config="../pretrain/mae_small_64px.py", set={**epochs, "target": {"name": "pca", "basis": "@basis"}}, data="tiny", hours=1.1, gib=0.2),
    "dVAE token": dict(config="../pretrain/mae_small_64px.py", set={**epochs, "target": {"name": "token", "tokenizer": "@tokens"}}, data="tiny", hours=1.3, gib=0.2),
    "random init": dict(
        fresh={"backbone.encoder": dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64)},
        fresh_in={name: {"optim.layer_decay": 1.0} for name in ("finetune", "detect", "segment")},
    ),
}
pretrained = ("pixel (w/ norm)", "pixel (w/o norm)", "PCA", "dVAE token")
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/small_finetune.py", data="tiny", hours=1.1, gib=0.1),
    "linear": dict(tool="cls_train", config="../classify/small_linear.py", data="tiny", rows=pretrained, hours=0.6, gib=0.1),
    "knn": dict(tool="cls_train", config="../classify/small_knn.py", data="tiny", seeds=(0,), hours=0.05),
    "detect": dict(tool="det_train", config="../detect/shapes.py", hours=0.2, gib=0.1),
    "segment": dict(tool="seg_train", config="../segment/camvid.py", data="camvid", hours=0.8, gib=0.1),
    **{
        f"partial-{blocks}": dict(
            tool="cls_train", config="../classify/small_partial.py", data="tiny", rows=("pixel (w/ norm)",), seeds=(0,),
            set={"protocol.tune_blocks": blocks}, hours=0.8, gib=0.1,
        )
        for blocks in (0, "half", 1, 2, 4, "all")
    },
}
del epochs, pretrained
