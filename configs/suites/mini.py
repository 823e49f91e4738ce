"""The whole way in minutes on a CPU, on generated scenes: normalised pixels, tokens and random initialisation, transferred in every way that there is.

Command:   python tools/reproduce.py configs/suites/mini.py --work-dir runs/mini          (`make mini` runs it)
Cost:      up to 12 minutes on two CPU cores, 1 GB.
Published: none; nobody else trains on these. It shows how the tables come about, and ranks nothing: one seed, a tiny model, a short pretraining.
"""

title = "mini"
tables = ("1d", "3", "4", "5", "7", "12", "knn", "2")
prepare = {"tokens": dict(kind="dvae", config="../mini/tokenizer.py")}
rows = {
    "pixel (w/ norm)": dict(config="../mini/pretrain.py"),
    "dVAE token": dict(config="../mini/pretrain.py", set={"target": {"name": "token", "tokenizer": "@tokens"}}),
    "random init": dict(
        fresh={"backbone.encoder": dict(size=None, dim=128, depth=6, heads=4, patch=8, image_size=64)},
        fresh_in={"finetune": {"optim.layer_decay": 1.0}},
    ),
}
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/mini.py"),
    "linear": dict(tool="cls_train", config="../classify/mini_linear.py"),
    "knn": dict(tool="cls_train", config="../classify/mini_knn.py"),
}
