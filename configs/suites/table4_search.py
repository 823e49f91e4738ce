"""Table 4 with a search of learning rate and weight decay per backbone.

The search evaluates on images held out of train2017.

Command:   python tools/reproduce.py configs/suites/table4_search.py --work-dir runs/table4_search \
           --root coco=/data/coco --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      as configs/suites/table4.py, plus nine runs of 25 epochs per backbone: 270 h for ViT-B, 640 h for ViT-L.
Published: as configs/suites/table4.py. The grid is that of Li et al. (2111.11429, section 2.4): rate 1.6e-4 and weight
           decay 0.1, halved and doubled, at 25 epochs without drop path. They extend it if the best value lies at a
           border, and then search drop path in {0, 0.1, 0.2, 0.3} at 50 epochs. Here it is not extended, and drop path
           is not searched.
"""

_base_ = "table4.py"
title = "table4_search"
search = dict(
    grid={"optim.lr": (8e-5, 1.6e-4, 3.2e-4), "optim.weight_decay": (0.05, 0.1, 0.2)},
    set={
        "epochs": 25.0, "drop_path": 0.0, "data.train.part": (0.0, 0.95), "data.val": {"name": "coco", "split": "train2017", "part": (0.95, 1.0)},
    },
    metric="bbox/AP",
    split="val",
)
transfer = {"coco B": dict(sweep=dict(hours=29.5, **search)), "coco L": dict(sweep=dict(hours=71.0, **search))}
del search
