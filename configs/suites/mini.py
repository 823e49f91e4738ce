"""The whole way in minutes on a CPU, on generated scenes: normalised pixels, tokens and random initialisation, transferred in every way that there is.

Command:   python tools/reproduce.py configs/suites/mini.py --work-dir runs/mini --jobs 2          (`make mini` runs it)
Cost:      about 11 minutes on two CPU cores, 2 GB.
Published: none; nobody else trains on these. It shows how the tables come about, and ranks nothing: one seed, a tiny model, a short pretraining.
"""

title = "mini"
tables = ("1d", "3", "4", "5", "7", "12", "knn", "2")
prepare = {"tokens": dict(kind="dvae", config="../mini/tokenizer.py", set={"epochs": 4, "tau.epochs": 3.0}, hours=0.02)}
encoder = dict(size=None, dim=128, depth=6, heads=4, patch=8, image_size=64)
short = {"epochs": 6, "schedule.warmup_epochs": 1.0, "evaluate_epochs": 3}
rows = {
    "pixel (w/ norm)": dict(config="../mini/pretrain.py", set=short, hours=0.05),
    "dVAE token": dict(config="../mini/pretrain.py", set={**short, "target": {"name": "token", "tokenizer": "@tokens"}}, hours=0.05),
    "random init": dict(
        fresh={"backbone.encoder": encoder},
        fresh_in={name: {"optim.layer_decay": 1.0} for name in ("finetune", "detect", "segment")},
    ),
}
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/mini.py", set={"epochs": 3}, hours=0.025),
    "linear": dict(tool="cls_train", config="../classify/mini_linear.py", set={"epochs": 2}, hours=0.013),
    "knn": dict(tool="cls_train", config="../classify/mini_knn.py", hours=0.006),
    "detect": dict(
        tool="det_train",
        config="../detect/mini.py",
        set={"epochs": 2, "batch": 4, "data.train.length": 256, "backbone.changes": {"windows": 6, "global_blocks": (2, 5), "positions": "learned"}},
        hours=0.024,
    ),
    "segment": dict(tool="seg_train", config="../segment/mini.py", set={"epochs": 3, "data.train.length": 512}, hours=0.016),
}
del encoder, short
