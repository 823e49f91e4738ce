"""Does pretraining help segmentation on your data? Five rows, three seeds, one 24 GB GPU.

Rows: MAE on your own images, released MAE, DINO, supervised (DeiT) and random weights; all ViT-B/16 under UperNet for
10 epochs. Each row's learning rate is the best of three on images held out of the training set.

photos: images for pretraining, any layout, no labels. maps: ADE20K's layout with your class list (docs/data.md).

Command:   python tools/reproduce.py configs/suites/own_segmentation.py --work-dir runs/own_seg \
           --root photos=/data/photos --root maps=/data/maps
Cost:      about 180 h for 50,000 photos and 10,000 images with maps (an estimate: 10 h of pretraining at 40 TFLOP/s
           sustained, the rest at mae_segmentation's rate on RTX 3090, 3.3 crops/s); tools/seg_train.py ... --estimate
           times your machine; 50 GB of disk.
Published: none.
"""

title = "own_segmentation"
device = "GPU at 40 TFLOP/s"
tables = ("summary",)
seeds = (0, 1, 2)
roots = dict(photos="data/photos", maps="data/maps")
rows = {
    "own MAE": dict(config="../pretrain/own_photos_one_gpu.py", data="photos", hours=10.0, gib=4.0),
    "released MAE": dict(backbone="released:mae_vit_base"),
    "DINO": dict(backbone="released:dino_vit_base_16"),
    "supervised": dict(backbone="released:deit_base"),
    "random": dict(backbone="random:ViT-B/16", fresh={"optim.layer_decay": 1.0}),
}
transfer = {
    "segment": dict(
        tool="seg_train",
        config="../segment/upernet_vit_base_one_gpu.py",
        data="maps",
        set={"epochs": 10.0, "evaluate_epochs": None, "run.keep_last": 1},
        device="RTX 3090",
        hours=8.3,
        gib=1.5,
        sweep=dict(
            grid={"optim.lr": (5e-5, 1e-4, 2e-4)},
            set={
                "epochs": 4.0,
                "data.train.part": (0.0, 0.9),
                "data.val": {"name": "ade", "split": "training", "part": (0.9, 1.0), "allow_absent": True},
            },
            hours=3.0,
            metric="mIoU",
            split="val",
        ),
    )
}
