"""Chooses the rates of claims.py: of pretraining and of fine-tuning, each once, for all rows alike.

Nothing here reads the images that claims.py reports on. `heldout` is a folder of links to the training images of
Tiny-ImageNet: every tenth file of each class, in sorted order, in val/, the others in train/. A linear probe judges a
pretraining of three epochs per rate; three rates of fine-tuning start from the pretraining with the middle one.

Command:   python tools/reproduce.py configs/suites/claims_search.py --work-dir runs/claims_search \
           --root heldout=/data/tiny-heldout
Cost:      about 20 minutes of one CPU core; 1 GB.
Published: none at this scale.
"""

title = "claims_search"
device = "CPU core"
tables = ("12", "3")
roots = dict(heldout="data/tiny-heldout")
small = {"data.size": 32, "batch": 64, "precision": "float32"}
pretraining = {
    **small,
    "epochs": 3,
    "evaluate_epochs": None,
    "model.encoder": {"size": None, "dim": 96, "depth": 4, "heads": 3, "patch": 4, "image_size": 32},
    "model.decoder": {"depth": 2, "dim": 64, "heads": 2},
}
rows = {
    f"rate {rate:g}": dict(config="../pretrain/mae_small_64px.py", data="heldout", set={**pretraining, "optim.lr": rate}, hours=0.05)
    for rate in (1e-3, 2e-3, 4e-3)
}
probe = {"data.size": 32, "data.augmentation": {"name": "none"}, "precision": "float32"}
finetune = {**small, "epochs": 2, "protocol.cutmix": 0.0, "protocol.drop_path": 0.0}
transfer = {
    "linear": dict(tool="cls_train", config="../classify/small_linear.py", data="heldout", set=probe, hours=0.03),
    **{
        f"fine-tune {rate:g}": dict(
            tool="cls_train", config="../classify/small_finetune.py", data="heldout", rows=("rate 0.002",), hours=0.05,
            set={**finetune, "optim.lr": rate},
        )
        for rate in (5e-4, 1e-3, 2e-3)
    },
}
del small, pretraining, probe, finetune
