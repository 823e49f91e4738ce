"""The model zoo and random weights of the same architecture through the demo's classification protocols, at 64 pixels.

Command:   python tools/reproduce.py configs/suites/zoo.py --work-dir runs/zoo --jobs 2
Cost:      about 11 minutes on two CPU cores, 2 GB.
Published: none. The numbers are in mae_transfer/zoo/README.md.
"""

title = "zoo"
device = "2 CPU cores"
tables = ("summary",)
seeds = (0, 1, 2)
rows = {
    "shapes64_norm_pixel": dict(backbone="zoo:shapes64_norm_pixel"),
    "shapes64_pixel": dict(backbone="zoo:shapes64_pixel"),
    "random weights": dict(
        fresh={"backbone.encoder": dict(size=None, dim=192, depth=5, heads=3, patch=8, image_size=64)},
        fresh_in={"fine-tune": {"optim.layer_decay": 1.0}},
    ),
}
transfer = {
    "fine-tune": dict(
        tool="cls_train",
        config="../classify/mini.py",
        set={
            "data.size": 64,
            "data.train": dict(name="shapes", size=64, length=2048, seed=2, objects=(1, 1)),
            "data.val": dict(name="shapes", size=64, length=1000, seed=3, objects=(1, 1)),
        },
        hours=0.03,
    ),
    "linear": dict(
        tool="cls_train",
        config="../classify/mini_linear.py",
        set={
            "data.size": 64,
            "data.train": dict(name="shapes", size=64, length=2048, seed=2, objects=(1, 1)),
            "data.val": dict(name="shapes", size=64, length=1000, seed=3, objects=(1, 1)),
        },
        hours=0.01,
    ),
    "knn": dict(
        tool="cls_train",
        config="../classify/mini_knn.py",
        set={
            "data.size": 64,
            "data.train": dict(name="shapes", size=64, length=2048, seed=2, objects=(1, 1)),
            "data.val": dict(name="shapes", size=64, length=1000, seed=3, objects=(1, 1)),
        },
        hours=0.004,
    ),
}
chance = {"fine-tune": 10.0, "linear": 10.0, "k-NN": 10.0}
