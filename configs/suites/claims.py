"""Twelve claims of the MAE paper (arXiv 2111.06377) and one of CrossMAE (arXiv 2401.14391) at a small scale.

Images of 32 pixels (Tiny-ImageNet of 100 classes and 20,000 images, decoded to 32 px; CamVid; generated scenes for
detection), a ViT of width 96 with 4 blocks and patches of 4 pixels, normalised pixels as the default target, 16 epochs,
three seeds of pretraining.
`expect` states each claim with the published effect and the rule of its verdict (mae_transfer/suite/expect.py). Rows
share the rates that claims_search.py chose on held-out training images: of pretraining (`optim.lr` in `recipe`) and of
fine-tuning (in `finetune`). Random weights have their own rate of fine-tuning, chosen in the same way (in `fresh_in`).
The most informative rows come first, and each row runs to its end. docs/results/claims.md has the results.

Command:   OMP_NUM_THREADS=1 python tools/reproduce.py configs/suites/claims_search.py --work-dir runs/claims_search \
           --root heldout=/data/tiny-heldout          (first, see there)
           mkdir -p runs/claims_archive && cp docs/results/claims/* runs/claims_archive     (if it exists)
           OMP_NUM_THREADS=1 python tools/reproduce.py configs/suites/claims.py --work-dir runs/claims \
           --archive runs/claims_archive --root tiny=/data/tinyimagenet --root camvid=/data/camvid
           It can be stopped at any time (Ctrl-C). Runs in the archive are not repeated, on any machine. Copy it back to
           docs/results/claims afterwards; written there directly, it would make records say that files differ from the
           commit.
Cost:      about 13 hours of one CPU core (from the processor time of short trials, float32, one thread), 2 GB.
Published: the effects in `expect`, of ViT-B and ViT-L at 224 px. No number of this scale is published.
"""

title = "claims"
device = "CPU core"
tables = ("12", "3", "4", "5", "2")
seeds = (0, 1, 2)
pretrain_seeds = "each"
order = "rows"
roots = dict(tiny="data/tinyimagenet", camvid="data/camvid")
encoder = {"size": None, "dim": 96, "depth": 4, "heads": 3, "patch": 4, "image_size": 32}
prepare = {"tokens": dict(kind="dvae", config="../tokenizer/tokens_64px.py", data="tiny", hours=0.2)}
recipe = {
    "epochs": 16,
    "batch": 64,
    "data.size": 32,
    "model.encoder": encoder,
    "model.decoder": {"depth": 2, "dim": 64, "heads": 2},
    "optim.lr": 2e-3,
    "precision": "float32",
    "evaluate_epochs": None,
}
changes = {  # of the recipe, by row: its changes and the hours of one pretraining
    "MAE": ({}, 0.15),
    "4 epochs": ({"epochs": 4}, 0.04),
    "crop + color jit": ({"data.augmentation": {"name": "random_crop", "scale": (0.2, 1.0), "jitter": 0.4}}, 0.17),
    "pixel (w/o norm)": ({"target": {"name": "pixel"}}, 0.15),
    "block 75%": ({"mask.name": "block"}, 0.15),
    "grid 75%": ({"mask": {"name": "grid"}}, 0.15),
    "dVAE token": ({"target": {"name": "token", "tokenizer": "@tokens"}}, 0.19),
    "dVAE token, 4 epochs": ({"target": {"name": "token", "tokenizer": "@tokens"}, "epochs": 4}, 0.05),
    "ratio 50%": ({"mask.ratio": 0.5}, 0.22),
    "ratio 90%": ({"mask.ratio": 0.9}, 0.11),
    "encoder w/ [M]": ({"model.corrupt": "mask_token"}, 0.36),
    "1 block": ({"model.decoder.depth": 1}, 0.12),
    "4 blocks": ({"model.decoder.depth": 4}, 0.21),
    "a third": ({"model.decoder.share": 1 / 3}, 0.13),
    "CrossMAE, a third": ({"model.decoder.share": 1 / 3, "model.decoder.kind": "cross"}, 0.13),
}
rows = {
    row: dict(config="../pretrain/mae_small_64px.py", data="tiny", set={**recipe, **change}, hours=hours, gib=0.02)
    for row, (change, hours) in changes.items()
}
rows = {
    "MAE": rows["MAE"],
    "random init": dict(
        fresh={"backbone.encoder": encoder},
        fresh_in={
            "fine-tune": {"optim.layer_decay": 1.0, "optim.lr": 1e-3},
            "detect": {"optim.layer_decay": 1.0},
            "segment": {"optim.layer_decay": 1.0},
        },
    ),
    **rows,
}
pretrained = tuple(changes)
finetune = {
    "epochs": 5, "batch": 64, "data.size": 32, "protocol.cutmix": 0.0, "protocol.drop_path": 0.0, "optim.lr": 4e-3,
    "precision": "float32", "data.holdout_fraction": 0.1,  # as the linear probes, which select on these images
}
transfer = {
    "linear": dict(
        tool="cls_train", config="../classify/small_linear.py", data="tiny", hours=0.025, gib=0.01,
        set={
            "data.size": 32, "data.augmentation": {"name": "none"}, "precision": "float32", "protocol.rates": (3.0, 10.0, 30.0, 100.0),
        },
    ),
    "logreg": dict(tool="cls_train", config="../classify/small_logreg.py", data="tiny", set={"data.size": 32}, hours=0.01, gib=0.01),
    "fine-tune": dict(
        tool="cls_train", config="../classify/small_finetune.py", data="tiny", set=finetune, hours=0.09, gib=0.02,
        rows=(
            "MAE", "random init", "4 epochs", "1 block", "4 blocks", "pixel (w/o norm)", "dVAE token", "dVAE token, 4 epochs",
            "a third", "CrossMAE, a third",
        ),
    ),
    "partial": dict(
        tool="cls_train", config="../classify/small_partial.py", data="tiny", set={**finetune, "protocol.tune_blocks": 1},
        rows=("MAE",), hours=0.05, gib=0.02,
    ),
    "detect": dict(
        tool="det_train", config="../detect/mini.py", rows=("MAE", "random init"),
        set={"scale": "small", "data.val.length": 1024}, hours=0.02, gib=0.02,
    ),
    "segment": dict(
        tool="seg_train", config="../segment/camvid.py", data="camvid", rows=("MAE", "random init"), hours=0.18, gib=0.02,
        set={
            "epochs": 20, "data.size": 64, "data.scale": (160, 120), "protocol.taps": (0, 1, 2, 3), "inference.stride": 48,
            "evaluate_epochs": None,
        },
    ),
}
RATIO = "A high mask ratio, 75 %, is best"
MASKS = "Random masks are better than masks of blocks and grids"
TOKENS = "An encoder without mask tokens is better and cheaper"
DEPTH = "A deep decoder matters for linear probing, not for fine-tuning"
GAP = "One tuned block closes more than half of the gap from linear probing to fine-tuning"
NORM = "Normalised pixels are better targets than raw pixels"
LONGER = "Longer pretraining is better"
TIE = 1.0  # points: about the standard error of a difference between two models on 3,000 images
THIRD = "A third of the hidden patches is enough to predict (CrossMAE)"
expect = (
    dict(
        claim="Pretraining improves fine-tuning", column="fine-tune", row="MAE", above="random init",
        published=(("3", "MAE", "ViT-B/16"), ("3", "none (scratch)", "ViT-B/16")),
    ),
    dict(
        claim="Pretraining improves detection", column="box AP", row="MAE", above="random init",
        published=(("4", "MAE", "box AP, ViT-B/16"), ("4", "none (scratch)", "box AP, ViT-B/16")),
    ),
    dict(  # the paper compares with supervised pretraining; random weights are weaker
        claim="Pretraining improves segmentation (published: over supervised pretraining)", column="mIoU", row="MAE",
        above="random init", published=(("5", "MAE", "ViT-B/16"), ("5", "supervised", "ViT-B/16")),
    ),
    dict(
        claim=GAP, column="fine-tune", row="MAE", against=("linear",),
        published=(("figure 9", "MAE", "24"), ("figure 9", "MAE", "0")),
    ),
    dict(
        claim=GAP, column="partial", row="MAE", against=("linear", "fine-tune"),
        published=(("figure 9", "MAE", "1"), ("figure 9", "MAE", "0"), ("figure 9", "MAE", "24")),
    ),
    *(
        dict(
            claim=LONGER, column=column, row="MAE", above="4 epochs",
            published=(("figure 7", paper, "800 epochs"), ("figure 7", paper, "200 epochs")),
        )
        for column, paper in (("linear", "linear"), ("fine-tune", "fine-tuning"))
    ),
    *(
        dict(
            claim=RATIO, column="linear", row="MAE", above=f"ratio {other}",
            published=(("figure 5", "linear", "75%"), ("figure 5", "linear", other)),
        )
        for other in ("50%", "90%")
    ),
    *(
        dict(
            claim=MASKS, column="linear", row="MAE", above=other,
            published=(("1f", "random 75%", "linear"), ("1f", other, "linear")),
        )
        for other in ("block 75%", "grid 75%")
    ),
    dict(
        claim=DEPTH, column="linear", row="4 blocks", above="1 block",
        published=(("1a", "8 blocks", "linear"), ("1a", "1 block", "linear")),
    ),
    dict(
        claim=DEPTH, column="fine-tune", row="4 blocks", above="1 block", rule="tie", by=TIE,
        published=(("1a", "8 blocks", "fine-tuning"), ("1a", "1 block", "fine-tuning")),
    ),
    dict(
        claim=TOKENS, column="linear", row="MAE", above="encoder w/ [M]",
        published=(("1c", "encoder w/o [M]", "linear"), ("1c", "encoder w/ [M]", "linear")),
    ),
    dict(
        claim=TOKENS, table="2", column="GFLOPs per image", row="encoder w/ [M]", above="MAE",
        published=(("1c", "encoder w/ [M]", "relative FLOPs"), ("1c", "encoder w/o [M]", "relative FLOPs")),
    ),
    *(
        dict(
            claim=NORM, column=column, row="MAE", above="pixel (w/o norm)",
            published=(("1d", "pixel (w/ norm)", paper), ("1d", "pixel (w/o norm)", paper)),
        )
        for column, paper in (("fine-tune", "fine-tuning"), ("linear", "linear"))
    ),
    dict(
        claim="Tokens and normalised pixels tie", column="fine-tune", row="dVAE token", above="MAE", rule="tie", by=TIE,
        published=(("7", "dVAE token", "ImageNet, ViT-L/16"), ("7", "pixel (w/ norm)", "ImageNet, ViT-L/16")),
    ),
    dict(
        claim="Crops suffice as augmentation: colour jitter makes it worse", column="linear", row="MAE",
        above="crop + color jit", published=(("1e", "crop, rand size", "linear"), ("1e", "crop + color jit", "linear")),
    ),
    dict(
        claim=THIRD, column="fine-tune", row="CrossMAE, a third", above="MAE", rule="tie", by=TIE,
    ),  # 83.5 and 83.7 in CrossMAE's table 1, which this package does not hold
    dict(claim=THIRD, column="fine-tune", row="a third", above="MAE", rule="tie", by=TIE),
)
del encoder, recipe, changes, pretrained, finetune, RATIO, MASKS, TOKENS, DEPTH, GAP, NORM, LONGER, TIE, THIRD
