"""Does pretraining help classification on your data? Five rows, three seeds, one 24 GB GPU.

Rows: MAE on your own images, released MAE, DINO, supervised (DeiT) and random weights; all ViT-B/16, fine-tuned for 50
epochs, and judged by their nearest neighbours as they are. which_backbone.py compares nine released backbones without
training them, in a fifth of the time. The learning rate of each row's fine-tuning is the best of three on images held
out of the training set.

photos: images for pretraining, any layout, no labels. labelled: train/<class>/ and val/<class>/.

Command:   python tools/reproduce.py configs/suites/own_classification.py --work-dir runs/own_cls \
           --root photos=/data/photos --root labelled=/data/labelled
Cost:      about 25 h for 50,000 photos and 10,000 labelled images, at 40 TFLOP/s sustained (an estimate from FLOPs);
           tools/cls_train.py ... --estimate times your machine; 50 GB of disk.
Published: none.
"""

title = "own_classification"
device = "GPU at 40 TFLOP/s"
tables = ("summary",)
seeds = (0, 1, 2)
roots = dict(photos="data/photos", labelled="data/labelled")
rows = {
    "own MAE": dict(config="../pretrain/own_photos_one_gpu.py", data="photos", hours=10.0, gib=4.0),
    "released MAE": dict(backbone="released:mae_vit_base"),
    "DINO": dict(backbone="released:dino_vit_base_16"),
    "supervised": dict(backbone="released:deit_base"),
    "random": dict(backbone="random:ViT-B/16", fresh_in={"finetune": {"optim.layer_decay": 1.0}}),
}
transfer = {
    "finetune": dict(
        tool="cls_train",
        config="../classify/finetune_vit_base.py",
        data="labelled",
        set={"epochs": 50.0, "batch": 256, "schedule.warmup_epochs": "5%", "run.device_batch": 64, "run.keep_last": 1},
        hours=0.6,
        gib=1.5,
        sweep=dict(
            grid={"optim.blr": (5e-4, 1e-3, 2e-3)},
            set={"epochs": 20.0, "data.holdout_fraction": 0.1},
            hours=0.25,
        ),
    ),
    "knn": dict(
        tool="cls_train",
        config="../classify/knn.py",
        data="labelled",
        seeds=(0,),
        set={"ks": (20,)},
        hours=0.05,
    ),
}
