"""What frozen features are worth at a small scale: normalised pixels, tokens and random weights, three pretrainings each.

Tiny-ImageNet for pretraining and classification, CamVid for dense features. A smaller and shorter form of
which_backbone.py, with pretraining.

Command:   python tools/reproduce.py configs/suites/frozen_small.py --work-dir runs/frozen --jobs 2 \
           --root tiny=/data/tinyimagenet --root camvid=/data/camvid
Cost:      about 2 hours of one CPU core: 6 pretrainings of 5 epochs, and 40 minutes for all transfers; 2 GB.
Published: none at this scale.
"""

title = "frozen_small"
device = "CPU core"
tables = ("frozen", "knn", "12")
seeds = (0, 1, 2)
pretrain_seeds = "each"
roots = dict(tiny="data/tinyimagenet", camvid="data/camvid")
prepare = {
    "tokens": dict(
        kind="dvae", config="../tokenizer/tokens_64px.py", set={"epochs": 2, "tau.epochs": 1.25}, data="tiny", hours=0.1
    )
}
recipe = {"epochs": 5, "schedule.warmup_epochs": 0.5, "precision": "float32"}
pretraining = dict(config="../pretrain/mae_small_64px.py", data="tiny", hours=0.2, gib=0.2)
rows = {
    "pixel (w/ norm)": dict(**pretraining, set=recipe),
    "dVAE token": dict(**pretraining, set={**recipe, "target": {"name": "token", "tokenizer": "@tokens"}}),
    "random init": dict(
        fresh={"backbone.encoder": dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64)}
    ),
}
evaluation = dict(tool="cls_train", data="tiny", hours=0.02)
dense = dict(tool="seg_train", data="camvid", hours=0.02, set={"bank": 20_000})
transfer = {
    "knn": dict(**evaluation, config="../classify/small_knn.py"),
    "ridge": dict(**evaluation, config="../classify/small_ridge.py"),
    "logreg": dict(**evaluation, config="../classify/small_logreg.py"),
    "probes": dict(
        tool="cls_train",
        config="../classify/small_attentive.py",
        data="tiny",
        set={"epochs": 2, "evaluate_epochs": None, "precision": "float32"},
        hours=0.06,
        gib=0.05,
    ),
    "frozen-knn": dict(**dense, config="../segment/camvid_knn.py"),
    "frozen-logreg": dict(**dense, config="../segment/camvid_logreg.py"),
}
del recipe, pretraining, evaluation, dense
