"""Which released backbone suits your images, without training it? Ten backbones of ViT-B's size, one ranking.

Rows: masked pretraining (MAE, BEiT, EVA-02), joint embedding (MoCo v3, DINO, DINOv2), labels (DeiT, AugReg), text
(CLIP) and random weights. Columns: k-NN, logistic regression, and linear and attentive probes, each selected on images
held out of the training set. No backbone is trained, so this takes a fraction of own_classification.py, which
fine-tunes, and which pretrains on your own images. Start here, then fine-tune the best.

The probes draw crops and initial weights, so they have three seeds. k-NN and logistic regression draw nothing:
released weights have one run of them and no range, random weights have three runs. `average rank` is over all
columns, with its range over the seeds.

What a probe reads is selected, too: the class token or the mean of the patch tokens, and for attentive probes the patch
tokens with or without the class token. k-NN and logistic regression read the class token, which masked pretraining
(MAE) does not train directly: compare such a row by its probes, or add transfers with "pool": "mean" to a copy.

own: train/<class>/ and val/<class>/. With fewer than 20 training images, k-NN has no number; with fewer than about 75,
of which a tenth is held out, the probes have none (batch = 64). All weights are fetched before the first run. To add
backbones, add rows to a copy of this file: "iBOT": dict(backbone="released:ibot_vit_base"), or
"SimMIM": dict(backbone="simmim:FILE"), which comes as a file.

Command:   python tools/reproduce.py configs/suites/which_backbone.py --work-dir runs/which --root own=/data/own
Cost:      about 5 h for 10,000 images, at 40 TFLOP/s sustained (an estimate from FLOPs); 20 GB of disk.
Published: none on your images. Table `frozen` has those on ImageNet-1K, for instance k-NN 35.6 (MAE), 71.6 (DINO).
"""

title = "which_backbone"
device = "GPU at 40 TFLOP/s"
tables = ("frozen",)
seeds = (0, 1, 2)
roots = dict(own="data/own")
rows = {
    "MAE": dict(backbone="released:mae_vit_base"),
    "BEiT": dict(backbone="released:beit_base"),
    "EVA-02": dict(backbone="timm:eva02_base_patch14_224.mim_in22k"),
    "MoCo v3": dict(backbone="released:moco_v3_vit_base"),
    "DINO": dict(backbone="released:dino_vit_base_16"),
    "DINOv2": dict(backbone="released:dinov2_vit_base"),
    "DeiT": dict(backbone="released:deit_base"),
    "AugReg": dict(backbone="timm:vit_base_patch16_224.augreg_in21k"),
    "CLIP": dict(backbone="timm:vit_base_patch16_clip_quickgelu_224.openai"),
    "random": dict(backbone="random:ViT-B/16"),
}
released = tuple(name for name in rows if name != "random")
knn = dict(tool="cls_train", config="../classify/knn.py", data="own", set={"ks": (20,)}, hours=0.01)
logreg = dict(tool="cls_train", config="../classify/logreg.py", data="own", set={"shots": ()}, hours=0.02)
transfer = {
    "knn": dict(**knn, rows=released, seeds=(0,)),
    "knn of random weights": dict(**knn, rows=("random",)),
    "logreg": dict(**logreg, rows=released, seeds=(0,)),
    "logreg of random weights": dict(**logreg, rows=("random",)),
    "probes": dict(
        tool="cls_train",
        config="../classify/attentive_probe.py",
        data="own",
        set={
            "epochs": 50.0,
            "batch": 64,
            "protocol.pools": ("cls", "mean"),
            "protocol.tokens": ("patches", "all"),
            "schedule.warmup_epochs": "10%",
            "data.holdout_fraction": 0.1,
            "run.device_batch": 64,
            "run.keep_last": 1,
        },
        hours=0.15,
        gib=0.6,
    ),
}
del released, knn, logreg
