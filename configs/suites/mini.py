"""The demo: two pretrainings and random weights, each through five transfers, on generated scenes.

Command:   python tools/reproduce.py configs/suites/mini.py --work-dir runs/mini --jobs 2          (`make mini` runs it)
Cost:      5 to 15 minutes on two CPU cores, 2 GB.
Published: none for generated scenes. Own numbers, settings and what was tried: docs/results/mini.md.
"""

title = "mini"
device = "2 CPU cores"
tables = ("1d", "3", "4", "5", "12", "knn", "2")
rows = {
    "pixel (w/ norm)": dict(config="../mini/pretrain.py", hours=0.03),
    "pixel (w/o norm)": dict(config="../mini/pretrain.py", set={"target": {"name": "pixel"}}, hours=0.03),
    "random weights": dict(
        fresh={"backbone.encoder": dict(size=None, dim=96, depth=4, heads=3, patch=4, image_size=32)},
        fresh_in={name: {"optim.layer_decay": 1.0} for name in ("fine-tune", "detect")},
    ),
}
transfer = {
    "fine-tune": dict(tool="cls_train", config="../classify/mini.py", hours=0.018),
    "linear": dict(tool="cls_train", config="../classify/mini_linear.py", hours=0.008),
    "knn": dict(tool="cls_train", config="../classify/mini_knn.py", hours=0.002),
    "detect": dict(tool="det_train", config="../detect/mini.py", hours=0.016),
    "segment": dict(tool="seg_train", config="../segment/mini.py", hours=0.008),
}
chance = {"fine-tune": 10.0, "linear": 10.0, "k-NN": 10.0, "mIoU": 7.7}  # mIoU: all pixels predicted as ground
expect = (
    dict(column="fine-tune", row="pixel (w/ norm)", by=50.0),
    dict(column="fine-tune", row="pixel (w/o norm)", by=50.0),
    dict(column="fine-tune", row="pixel (w/ norm)", above="random weights", by=20.0),
    dict(column="fine-tune", row="pixel (w/o norm)", above="random weights", by=20.0),
    dict(column="linear", row="pixel (w/ norm)", above="random weights", by=5.0),
    dict(column="linear", row="pixel (w/o norm)", above="random weights", by=5.0),
    dict(column="mIoU", row="pixel (w/ norm)", by=15.4),
    dict(column="mIoU", row="pixel (w/ norm)", above="random weights", by=2.0),
    dict(column="box AP", row="pixel (w/ norm)", by=10.0),
)
