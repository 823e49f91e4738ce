"""What less work per pretraining step costs in transfer, at a small scale: three pretrainings of each row.

MAE, MAE that predicts a third of the hidden patches, CrossMAE that does so, and random weights. All pretrainings have
the same epochs, learning rate and decoder size. CrossMAE's paper lowers the rate by the share that is predicted, and its
decoder is half as deep again as MAE's. Tiny-ImageNet for pretraining and classification. The decoder is a small part of
this model: the rows need 0.86 and 0.83 of the operations of MAE's, with ViT-B/16 and 8 blocks 0.71 and 0.60.

Command:   python tools/reproduce.py configs/suites/cross_small.py --work-dir runs/cross --jobs 2 \
           --root tiny=/data/tiny-imagenet
Cost:      about 3 hours of one CPU core: 9 pretrainings of 5 epochs (1.7 h), 12 fine-tunings of 2 epochs (1 h), and
           evaluations of frozen features; 1 GB.
Published: none at this scale.
"""

title = "cross_small"
device = "CPU core"
tables = ("frozen", "3", "2")
seeds = (0, 1, 2)
pretrain_seeds = "each"
roots = dict(tiny="data/tiny-imagenet")
recipe = {"epochs": 5, "schedule.warmup_epochs": 0.5, "precision": "float32"}
pretraining = dict(config="../pretrain/mae_small_64px.py", data="tiny", hours=0.19, gib=0.1)
rows = {
    "MAE": dict(**pretraining, set=recipe),
    "MAE, a third": dict(**pretraining, set={**recipe, "model.decoder.share": 1 / 3}),
    "CrossMAE, a third": dict(**pretraining, set={**recipe, "model.decoder.share": 1 / 3, "model.decoder.kind": "cross"}),
    "random init": dict(
        fresh={"backbone.encoder": dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64)},
        fresh_in={"finetune": {"optim.layer_decay": 1.0}},
    ),
}
evaluation = dict(tool="cls_train", data="tiny", hours=0.01)
transfer = {
    "knn": dict(**evaluation, config="../classify/small_knn.py"),
    "ridge": dict(**evaluation, config="../classify/small_ridge.py"),
    "finetune": dict(
        tool="cls_train",
        config="../classify/small_finetune.py",
        data="tiny",
        set={"epochs": 2, "evaluate_epochs": None, "precision": "float32"},
        hours=0.08,
        gib=0.05,
    ),
}
del recipe, pretraining, evaluation
