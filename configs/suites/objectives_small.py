"""Compares pretraining objectives at a small scale: MAE on pixels and on tokens, DINO, iBOT, MoCo v3, random weights.

Tiny-ImageNet for pretraining and classification, generated scenes for detection, CamVid for segmentation; three seeds
of each transfer. All pretrainings get about the same processor time: MAE's 25 epochs took 1.1 hours of a core
(docs/results/pretrain.md), and the others have fewer by their processor time per image. On one core with AVX512-BF16,
images and step took 4.4 ms for MAE, 26 for DINO, 34 for iBOT, 18 for MoCo v3 (three steps of 32, bfloat16). Other
machines differ: check with `--estimate`. For longer runs, scale all `epochs`. The few steps need a teacher that follows
faster than in the configs, and prototypes that are frozen for less than an epoch.

Command:   python tools/reproduce.py configs/suites/objectives_small.py --work-dir runs/objectives --jobs 2 \
           --root tiny=/data/tiny-imagenet --root camvid=/data/camvid
Cost:      about 54 hours of one CPU core (6.5 for pretraining and the tokenizer, the rest for 87 transfers); 8 GB.
Published: none at this scale.
"""

title = "objectives_small"
device = "CPU core"
tables = ("survey", "knn", "12", "4", "5", "2")
seeds = (0, 1, 2)
roots = dict(tiny="data/tiny-imagenet", camvid="data/camvid")
prepare = {"tokens": dict(kind="dvae", config="../tokenizer/tokens_64px.py", data="tiny", hours=1.0)}
cost = dict(data="tiny", hours=1.1, gib=0.2)
quick = {"ema_decay.start": 0.99, "objective.freeze_epochs": 0.1}
rows = {
    "MAE": dict(**cost, config="../pretrain/mae_small_64px.py", set={"epochs": 25}),
    "MAE on tokens": dict(
        **cost,
        config="../pretrain/mae_small_64px.py",
        set={"epochs": 21, "target": {"name": "token", "tokenizer": "@tokens"}},
    ),
    "DINO": dict(**cost, config="../pretrain/dino_small_64px.py", set={**quick, "epochs": 4.1}),
    "iBOT": dict(**cost, config="../pretrain/ibot_small_64px.py", set={**quick, "epochs": 3.2}),
    "MoCo v3": dict(**cost, config="../pretrain/moco_v3_small_64px.py", set={"epochs": 6.2}),
    "random init": dict(
        fresh={"backbone.encoder": dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64)},
        fresh_in={name: {"optim.layer_decay": 1.0} for name in ("finetune", "detect", "segment")},
    ),
}
pretrained = tuple(name for name in rows if name != "random init")
transfer = {
    "knn": dict(tool="cls_train", config="../classify/small_knn.py", data="tiny", hours=0.05),
    "linear": dict(tool="cls_train", config="../classify/small_linear.py", data="tiny", rows=pretrained, hours=0.6, gib=0.1),
    "finetune": dict(tool="cls_train", config="../classify/small_finetune.py", data="tiny", hours=1.1, gib=0.1),
    "detect": dict(tool="det_train", config="../detect/shapes.py", hours=0.2, gib=0.1),
    "segment": dict(tool="seg_train", config="../segment/camvid.py", data="camvid", hours=0.8, gib=0.1),
}
del cost, quick, pretrained
