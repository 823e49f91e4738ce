"""Table 7 of MAE: raw pixels, normalised pixels and dVAE tokens, three seeds.

The transfers are to ImageNet, COCO and ADE20K.

Command:   python tools/reproduce.py configs/suites/table7.py --work-dir runs/table7 --root imagenet=/data/imagenet \
           --root coco=/data/coco --root ade=/data/ADEChallengeData2016 --only vit_b --launcher slurm \
           --gpus-per-node 8 --nodes 4
Cost:      with --only vit_b about 1,000 h of pretraining and, for each seed, 110 h of fine-tuning and 490 h of
           detection on one GPU at 100 TFLOP/s sustained (estimated from FLOPs), and 212 h of RTX 3090 per segmentation
           (published by mae_segmentation). ViT-L takes about twice that; pretraining ViT-H (ImageNet only) takes 5,000
           h. The tokenizer's encoder.pkl must be in the current folder.
Published: 83.3, 83.6, 83.6 top-1; 49.5, 50.3, 50.3 box AP; 48.0, 48.1, 48.1 mIoU (pixels, normalised pixels, tokens;
           ViT-B; table 7).
"""

title = "table 7"
tables = ("7", "3", "4", "5")
seeds = (0, 1, 2)
roots = dict(imagenet="data/imagenet", coco="data/coco", ade="data/ADEChallengeData2016")
targets = {
    "pixel (w/o norm)": ({"target": {"name": "pixel"}}, 1.0),
    "pixel (w/ norm)": ({}, 1.0),
    "dVAE token": ({"target": {"name": "token", "tokenizer": "dalle:encoder.pkl"}}, 1.19),  # relative time of ViT-B with the tokenizer
}
sizes = {"B": ("base_16", 319.0, 10.0), "L": ("large_16", 695.0, 20.0), "H": ("huge_14", 1651.0, 40.0)}
rows = {
    f"{target}, ViT-{size}": dict(
        row=target, config=f"../pretrain/mae_vit_{name}_1600e.py", set=changes, data="imagenet", hours=round(hours * (share if size == "B" else 1.0)), gib=gib,
    )
    for size, (name, hours, gib) in sizes.items()
    for target, (changes, share) in targets.items()
}
of = {size: tuple(f"{target}, ViT-{size}" for target in targets) for size in sizes}
transfer = {
    "finetune B": dict(tool="cls_train", config="../classify/finetune_vit_base.py", rows=of["B"], data="imagenet", hours=37.0, gib=5.0),
    "finetune L": dict(tool="cls_train", config="../classify/finetune_vit_large.py", rows=of["L"], data="imagenet", hours=66.0, gib=10.0),
    "finetune H": dict(tool="cls_train", config="../classify/finetune_vit_huge.py", rows=of["H"], data="imagenet", hours=178.0, gib=20.0),
    "coco B": dict(tool="det_train", config="../detect/mask_rcnn_vit_base_li2021_100ep.py", rows=of["B"], data="coco", hours=163.0, gib=5.0),
    "coco L": dict(tool="det_train", config="../detect/mask_rcnn_vit_large_li2021_100ep.py", rows=of["L"], data="coco", hours=360.0, gib=10.0),
    "ade B": dict(tool="seg_train", config="../segment/upernet_vit_base_160k.py", rows=of["B"], data="ade", device="RTX 3090", hours=212.0, gib=5.0),
    "ade L": dict(tool="seg_train", config="../segment/upernet_vit_large_160k.py", rows=of["L"], data="ade", device="RTX 3090", hours=550.0, gib=10.0),
}
del targets, sizes, of
