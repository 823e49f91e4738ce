"""Compares pretraining objectives at a small scale: MAE, MAE on tokens, BEiT, DINO, iBOT, MoCo v3, random weights.

All pretrain the same encoder (width 128, 4 blocks, patch 8, 64 px) on Tiny-ImageNet, each for about one hour of one
core: epochs = 3600 s / (processor time of an image x 20,000 images). For the two rows on tokens, the hour includes the
training of the tokenizer. Transfers are classification, detection on generated scenes and segmentation of CamVid, with
three seeds. `expect` states what every objective must show, and the paper's crossover between masked autoencoding and
joint embedding.

The joint objectives have fewer steps than in their configs, so the teacher follows faster and the head is smaller. These
values were chosen by the k-NN accuracy of training images that were held out, in two short trials
(docs/results/objectives.md). BEiT is MAE's small config with mask tokens in the encoder and no decoder.

Command:   python tools/reproduce.py configs/suites/objectives_small.py --work-dir runs/objectives --jobs 2 \
           --root tiny=/data/tinyimagenet --root camvid=/data/camvid
Cost:      about 10 hours of one CPU core (6.2 for pretraining and the tokenizer, the rest for transfers); 3 GB.
Published: none at this scale.
"""

title = "objectives_small"
device = "CPU core"
tables = ("survey", "frozen", "knn", "12", "4", "2")
seeds = (0, 1, 2)
roots = dict(tiny="data/tinyimagenet", camvid="data/camvid")
prepare = {
    "tokens": dict(
        kind="dvae", config="../tokenizer/tokens_64px.py", set={"epochs": 2, "tau.epochs": 1.25}, data="tiny", hours=0.1
    )
}
cost = dict(data="tiny", hours=1.0, gib=0.1)
encoder = {"model.encoder.dim": 128, "model.encoder.depth": 4, "model.encoder.heads": 4, "precision": "float32"}
distill = {
    **encoder,
    "batch": 64,
    "ema_decay.start": 0.99,
    "objective": dict(name="distill", out=1024, hidden=512, freeze_epochs=0.1),
}
tokens = {**encoder, "target": {"name": "token", "tokenizer": "@tokens"}}
rows = {
    "MAE": dict(**cost, config="../pretrain/mae_small_64px.py", set={**encoder, "epochs": 58}),
    "MoCo v3": dict(
        **cost,
        config="../pretrain/moco_v3_small_64px.py",
        set={**encoder, "batch": 128, "objective.hidden": 512, "epochs": 13},
    ),
    "DINO": dict(**cost, config="../pretrain/dino_small_64px.py", set={**distill, "epochs": 10.5}),
    "iBOT": dict(
        **cost,
        config="../pretrain/ibot_small_64px.py",
        set={**distill, "objective": {**distill["objective"], "patches": "masked"}, "epochs": 8},
    ),
    "MAE on tokens": dict(**cost, config="../pretrain/mae_small_64px.py", set={**tokens, "epochs": 40}),
    "BEiT": dict(
        **cost,
        config="../pretrain/mae_small_64px.py",
        set={
            **tokens,
            "model.decoder.depth": 0,
            "model.corrupt": "mask_token",
            "mask": dict(name="block", ratio=0.4),
            "epochs": 27,
        },
    ),
    "random init": dict(
        fresh={"backbone.encoder": dict(size=None, dim=128, depth=4, heads=4, patch=8, image_size=64)},
        fresh_in={name: {"optim.layer_decay": 1.0} for name in ("finetune", "detect")},
    ),
}
float32 = {"precision": "float32", "evaluate_epochs": None}
dense = dict(tool="seg_train", data="camvid", hours=0.02, set={"bank": 20_000})
transfer = {
    "knn": dict(tool="cls_train", config="../classify/small_knn.py", data="tiny", set={"pool": "cls+mean", "ks": (20,)}, hours=0.01),
    "logreg": dict(tool="cls_train", config="../classify/small_logreg.py", data="tiny", set={"pool": "cls+mean"}, hours=0.01),
    "linear": dict(
        tool="cls_train", config="../classify/small_linear.py", data="tiny", set={**float32, "epochs": 3}, hours=0.03, gib=0.02
    ),
    "finetune": dict(
        tool="cls_train", config="../classify/small_finetune.py", data="tiny", set={**float32, "epochs": 3}, hours=0.08, gib=0.02
    ),
    "detect": dict(tool="det_train", config="../detect/shapes.py", set={"epochs": 1}, hours=0.04, gib=0.02),
    "frozen-knn": dict(**dense, config="../segment/camvid_knn.py"),
    "frozen-logreg": dict(**dense, config="../segment/camvid_logreg.py"),
}
LINEAR, TUNED = "Joint embedding is better than MAE in linear probing", "MAE is better than joint embedding in fine-tuning"
BEIT = "MAE is better than BEiT in fine-tuning"
TIE = "Tokens and normalised pixels tie in fine-tuning at equal time, with the tokenizer's"
PIXELS = "Normalised pixels are better than tokens in linear probing at equal time, with the tokenizer's"
expect = (
    *(dict(column="k-NN", row=row, above="random init") for row in ("MAE", "MoCo v3", "DINO", "iBOT", "MAE on tokens", "BEiT")),
    dict(
        claim=LINEAR, column="linear", row="MoCo v3", above="MAE",
        published=(("survey", "MoCo v3, ViT-L/16", "linear"), ("survey", "MAE, ViT-L/16", "linear")),
    ),
    *(
        dict(
            claim=LINEAR, column="linear", row=row, above="MAE",
            published=(("survey", f"{row}, ViT-B/16", "linear"), ("survey", "MAE, ViT-B/16", "linear")),
        )
        for row in ("DINO", "iBOT")
    ),
    *(
        dict(
            claim=TUNED, column="fine-tune", row="MAE", above=row,
            published=(("3", "MAE", "ViT-B/16"), ("3", row, "ViT-B/16")),
        )
        for row in ("MoCo v3", "DINO")
    ),
    dict(claim=BEIT, column="fine-tune", row="MAE", above="BEiT", published=(("3", "MAE", "ViT-B/16"), ("3", "BEiT", "ViT-B/16"))),
    dict(
        claim=TIE, column="fine-tune", row="MAE on tokens", above="MAE", rule="tie",
        published=(("7", "dVAE token", "ImageNet, ViT-B/16"), ("7", "pixel (w/ norm)", "ImageNet, ViT-B/16")),
    ),
    dict(
        claim=PIXELS, column="linear", row="MAE", above="MAE on tokens",
        published=(("1d", "pixel (w/ norm)", "linear"), ("1d", "dVAE token", "linear")),
    ),
)
del cost, encoder, distill, tokens, float32, dense, LINEAR, TUNED, BEIT, TIE, PIXELS
