"""Chooses the rates of claims.py: of pretraining and of fine-tuning, each once, for all rows alike.

Nothing here reads the images that claims.py reports on, but for one that Tiny-ImageNet has in both sets. `heldout` is a
folder of links to the training images of Tiny-ImageNet: every tenth file of each class, in sorted order, in val/, the
others in train/ (docs/results/README.md makes it). A linear probe judges a pretraining of three epochs per rate; the
rates of fine-tuning start from the pretraining with the middle one, and from random weights. The highest top-1 on the
images of val/ wins. Within 0.5 points, the middle rate wins. If the last rate of a grid wins, one more is tried: 0.004 of
fine-tuning, because 0.002 won. Pretrained and random rows share a rate only if both choose it.

Command:   python tools/reproduce.py configs/suites/claims_search.py --work-dir runs/claims_search \
           --root heldout=/data/tiny-heldout
Cost:      about 35 minutes of one CPU core; 1 GB.
Published: none at this scale.
"""

title = "claims_search"
device = "CPU core"
tables = ("12", "3")
roots = dict(heldout="data/tiny-heldout")
small = {"data.size": 32, "batch": 64, "precision": "float32"}
encoder = {"size": None, "dim": 96, "depth": 4, "heads": 3, "patch": 4, "image_size": 32}
pretraining = {
    **small,
    "epochs": 3,
    "evaluate_epochs": None,
    "model.encoder": encoder,
    "model.decoder": {"depth": 2, "dim": 64, "heads": 2},
}
rows = {
    f"rate {rate:g}": dict(config="../pretrain/mae_small_64px.py", data="heldout", set={**pretraining, "optim.lr": rate}, hours=0.05)
    for rate in (1e-3, 2e-3, 4e-3)
}
pretrained = tuple(rows)
rates = (5e-4, 1e-3, 2e-3, 4e-3)
fresh_in = {f"fine-tune {rate:g}": {"optim.layer_decay": 1.0} for rate in rates}
rows["random init"] = dict(fresh={"backbone.encoder": encoder}, fresh_in=fresh_in)
probe = {
    "data.size": 32, "data.augmentation": {"name": "none"}, "precision": "float32", "protocol.rates": (3.0, 10.0, 30.0, 100.0),
}
finetune = {**small, "epochs": 2, "protocol.cutmix": 0.0, "protocol.drop_path": 0.0}
transfer = {
    "linear": dict(tool="cls_train", config="../classify/small_linear.py", data="heldout", set=probe, rows=pretrained, hours=0.03),
    **{
        f"fine-tune {rate:g}": dict(
            tool="cls_train", config="../classify/small_finetune.py", data="heldout", rows=("rate 0.002", "random init"), hours=0.05,
            set={**finetune, "optim.lr": rate},
        )
        for rate in rates
    },
}
del small, encoder, pretraining, pretrained, rates, fresh_in, probe, finetune
