"""Tables 3 to 7 and 12 of MAE on one set of pretrainings: nine pretrainings serve every table.

Command:   python tools/reproduce.py configs/suites/paper.py --work-dir runs/paper --store runs/store \
           --root imagenet=/data/imagenet --root coco=/data/coco --root ade=/data/ADEChallengeData2016 \
           --root inat2017=/data/inat2017 --root inat2018=/data/inat2018 --root inat2019=/data/inat2019 \
           --root places205=/data/places205 --root places365=/data/places365 --gpus-per-node 8
Cost:      about 8,100 h of pretraining on one GPU at 100 TFLOP/s sustained (estimated from FLOPs). Tables 3 to 7 one by
           one, without a store, take 15,400 h. --only vit_b runs the parts of ViT-B: 1,000 h. The tokenizer's
           encoder.pkl must be in the current folder.
Published: MAE, ViT-B: 83.6 top-1 (table 3), 50.3 box AP (4), 48.1 mIoU (5), 70.5 on iNaturalist 2017 (6), 68.0 linear
           (12); raw pixels 83.3, tokens 83.6 (7).
"""

title = "paper"
tables = ("3", "4", "5", "6", "7", "12", "survey", "ade")
sets = dict(inat2017=17.0, inat2018=13.0, inat2019=8.0, places205=71.0, places365=52.0)  # hours of fine-tuning ViT-B
roots = dict(imagenet="data/imagenet", coco="data/coco", ade="data/ADEChallengeData2016", **{name: f"data/{name}" for name in sets})
half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
targets = {
    "MAE": ({}, 1.0),
    "MAE, raw pixels": ({"target": {"name": "pixel"}}, 1.0),
    "MAE, dVAE tokens": ({"target": {"name": "token", "tokenizer": "dalle:encoder.pkl"}}, 1.19),  # relative time of ViT-B with the tokenizer
}
sizes = {"B": ("base_16", 319.0, 10.0), "L": ("large_16", 695.0, 20.0), "H": ("huge_14", 1651.0, 40.0)}
rows = {
    f"{target}, ViT-{size}": dict(
        row=target, config=f"../pretrain/mae_vit_{name}_1600e.py", set=changes, data="imagenet", hours=round(hours * (share if size == "B" else 1.0)), gib=gib,
    )
    for size, (name, hours, gib) in sizes.items()
    for target, (changes, share) in targets.items()
} | {
    "DINO, ViT-B": dict(row="DINO", backbone="timm:vit_base_patch16_224.dino"),
    "MoCo v3, ViT-B": dict(row="MoCo v3", backbone="released:moco_v3_vit_base", fresh_in={"coco B": {"optim.lr": 1.6e-4}}),
    "BEiT, ViT-B": dict(row="BEiT, ImageNet-22K", backbone="released:beit_base", fresh_in={"finetune B": half, "linear B": half}),  # the paper's were pretrained on ImageNet-1K
    "DeiT, ViT-B": dict(row="DeiT (supervised)", backbone="released:deit_base"),
    "scratch": dict(row="none (scratch)"),
}
of = {size: tuple(f"{target}, ViT-{size}" for target in targets) for size in sizes}
others = ("DINO, ViT-B", "MoCo v3, ViT-B", "BEiT, ViT-B")
fine_grained = {  # changes of finetune_vit_large.py, _huge.py, _huge_448.py to finetune_vit_base.py; hours relative to ViT-B
    "B": ({}, 1.0),
    "L": ({"epochs": 50}, 1.8),
    "H": ({"epochs": 50, "protocol.drop_path": 0.2, "run.device_batch": 32}, 4.8),
    "H at 448": (
        {"epochs": 50, "protocol.drop_path": 0.2, "data.size": 448, "data.shorter_side": 1.0, "run.device_batch": 8, "run.checkpoint_activations": True}, 21.1,
    ),
}
transfer = {
    "finetune B": dict(tool="cls_train", config="../classify/finetune_vit_base.py", rows=of["B"] + others, data="imagenet", hours=37.0, gib=5.0),
    "finetune L": dict(tool="cls_train", config="../classify/finetune_vit_large.py", rows=of["L"], data="imagenet", hours=66.0, gib=10.0),
    "finetune H": dict(tool="cls_train", config="../classify/finetune_vit_huge.py", rows=of["H"], data="imagenet", hours=178.0, gib=20.0),
    "finetune H448": dict(tool="cls_train", config="../classify/finetune_vit_huge_448.py", rows=("MAE, ViT-H",), data="imagenet", hours=780.0, gib=20.0),
    "linear B": dict(tool="cls_train", config="../classify/linear_probe.py", rows=("MAE, ViT-B", *others), data="imagenet", hours=11.0, gib=5.0),
    "linear L": dict(tool="cls_train", config="../classify/linear_probe.py", rows=("MAE, ViT-L",), data="imagenet", hours=39.0, gib=5.0),
    "linear H": dict(tool="cls_train", config="../classify/linear_probe.py", rows=("MAE, ViT-H",), data="imagenet", hours=107.0, gib=5.0),
    "scratch B": dict(tool="cls_train", config="../classify/scratch_vit_base.py", rows=("scratch",), data="imagenet", hours=112.0, gib=5.0),
    "scratch L": dict(tool="cls_train", config="../classify/scratch_vit_large.py", rows=("scratch",), data="imagenet", hours=264.0, gib=10.0),
    "scratch H": dict(tool="cls_train", config="../classify/scratch_vit_huge.py", rows=("scratch",), data="imagenet", hours=714.0, gib=20.0),
    "coco B": dict(
        tool="det_train", config="../detect/mask_rcnn_vit_base_li2021_100ep.py", rows=(*of["B"], "MoCo v3, ViT-B", "DeiT, ViT-B"), data="coco",
        hours=163.0, gib=5.0,
    ),
    "coco L": dict(tool="det_train", config="../detect/mask_rcnn_vit_large_li2021_100ep.py", rows=of["L"], data="coco", hours=360.0, gib=10.0),
    "coco scratch B": dict(tool="det_train", config="../detect/mask_rcnn_vit_base_li2021_scratch_200ep.py", rows=("scratch",), data="coco", hours=326.0, gib=5.0),
    "coco scratch L": dict(tool="det_train", config="../detect/mask_rcnn_vit_large_li2021_scratch_400ep.py", rows=("scratch",), data="coco", hours=1441.0, gib=10.0),
    "ade B": dict(
        tool="seg_train", config="../segment/upernet_vit_base_160k.py", rows=(*of["B"], "MoCo v3, ViT-B", "DeiT, ViT-B"), data="ade", device="RTX 3090", hours=212.0, gib=5.0,
    ),
    "ade BEiT": dict(tool="seg_train", config="../segment/upernet_beit_base_160k.py", rows=("BEiT, ViT-B",), data="ade", device="RTX 3090", hours=212.0, gib=5.0),
    "ade L": dict(tool="seg_train", config="../segment/upernet_vit_large_160k.py", rows=of["L"], data="ade", device="RTX 3090", hours=550.0, gib=10.0),
} | {
    f"{name} {size}": dict(
        tool="cls_train", config=f"../classify/finetune_{name}.py", set=changes, rows=(f"MAE, ViT-{size[0]}",), data=name, hours=round(hours * share, 1), gib=10.0,
    )
    for name, hours in sets.items()
    for size, (changes, share) in fine_grained.items()
}
del sets, half, targets, sizes, of, others, fine_grained
