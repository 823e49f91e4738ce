"""Does pretraining help detection on your data? Five rows, three seeds, one 24 GB GPU.

Rows: MAE on your own images, released MAE, DINO, supervised (DeiT) and random weights; all ViT-B/16 in ViTDet's recipe
at 12 epochs. Each row's learning rate is the best of three on images held out of the training set.

photos: images for pretraining, any layout, no labels. coco: train2017/, val2017/, annotations/instances_*.json.

Command:   python tools/reproduce.py configs/suites/own_detection.py --work-dir runs/own_det \
           --root photos=/data/photos --root coco=/data/coco
Cost:      about 95 h for 50,000 photos and 10,000 annotated images, at 40 TFLOP/s sustained (an estimate from FLOPs);
           tools/det_train.py ... --estimate times your machine; 50 GB of disk.
Published: none.
"""

title = "own_detection"
device = "GPU at 40 TFLOP/s"
tables = ("summary",)
seeds = (0, 1, 2)
roots = dict(photos="data/photos", coco="data/coco")
rows = {
    "own MAE": dict(config="../pretrain/own_photos_one_gpu.py", data="photos", hours=10.0, gib=4.0),
    "released MAE": dict(backbone="released:mae_vit_base"),
    "DINO": dict(backbone="released:dino_vit_base_16"),
    "supervised": dict(backbone="released:deit_base"),
    "random": dict(backbone="random:ViT-B/16", fresh={"optim.layer_decay": 1.0}),
}
transfer = {
    "detect": dict(
        tool="det_train",
        config="../detect/mask_rcnn_vitdet_base_one_gpu.py",
        data="coco",
        set={"epochs": 12.0, "run.keep_last": 1},
        hours=4.2,
        gib=1.5,
        sweep=dict(
            grid={"optim.lr": (2.5e-5, 5e-5, 1e-4)},
            set={
                "epochs": 4.0,
                "data.train.part": (0.0, 0.9),
                "data.val": {"name": "coco", "split": "train2017", "part": (0.9, 1.0)},
            },
            hours=1.4,
            metric="bbox/AP",
            split="val",
        ),
    )
}
