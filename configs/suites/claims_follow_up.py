"""Two experiments that docs/results/claims.md names, at the setting of claims.py.

Fine-tuning: random weights train for 13 epochs, about as many operations as the pretraining of "MAE" and its 5 epochs of
fine-tuning together. claims.py has the numbers of "MAE" at 5 epochs; they are compared seed by seed.
Detection: the box AP of claims.py varies more between seeds than the published effect. Here both rows train for 5 epochs
instead of 1. The claim and the rule of its verdict are those of claims.py.

Command:   OMP_NUM_THREADS=1 python tools/reproduce.py configs/suites/claims_follow_up.py --work-dir runs/claims_follow_up \
           --root tiny=/data/tinyimagenet
           Runs in the archive are not repeated: --archive, as in claims.py.
Cost:      about 2.5 hours of one CPU core, 1 GB.
Published: the effect in `expect`, of ViT-B at 1024 px. No number of this scale is published.
"""

title = "claims_follow_up"
device = "CPU core"
tables = ("3", "4")
seeds = (0, 1, 2)
pretrain_seeds = "each"
order = "rows"
roots = dict(tiny="data/tinyimagenet")
encoder = {"size": None, "dim": 96, "depth": 4, "heads": 3, "patch": 4, "image_size": 32}
rows = {
    "random init": dict(
        fresh={"backbone.encoder": encoder},
        fresh_in={"fine-tune": {"optim.layer_decay": 1.0, "optim.lr": 1e-3}, "detect": {"optim.layer_decay": 1.0}},
    ),
    "MAE": dict(
        config="../pretrain/mae_small_64px.py", data="tiny", hours=0.4, gib=0.02,
        set={
            "epochs": 16,
            "batch": 64,
            "data.size": 32,
            "model.encoder": encoder,
            "model.decoder": {"depth": 2, "dim": 64, "heads": 2},
            "optim.lr": 2e-3,
            "precision": "float32",
            "evaluate_epochs": None,
        },
    ),
}
transfer = {
    "fine-tune": dict(
        tool="cls_train", config="../classify/small_finetune.py", data="tiny", rows=("random init",), hours=0.3, gib=0.02,
        set={
            "epochs": 13, "batch": 64, "data.size": 32, "protocol.cutmix": 0.0, "protocol.drop_path": 0.0, "optim.lr": 4e-3,
            "precision": "float32", "data.holdout_fraction": 0.1,
        },
    ),
    "detect": dict(
        tool="det_train", config="../detect/mini.py", hours=0.12, gib=0.02,
        set={"scale": "small", "data.val.length": 1024, "epochs": 5},
    ),
}
expect = (
    dict(
        claim="Pretraining improves detection", column="box AP", row="MAE", above="random init",
        published=(("4", "MAE", "box AP, ViT-B/16"), ("4", "none (scratch)", "box AP, ViT-B/16")),
    ),
)
del encoder
