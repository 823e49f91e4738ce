"""Table 6 of MAE: fine-tuning on iNaturalist and Places, from ViT-B, L and H.

The recipe is ImageNet's, unadjusted.

Command:   python tools/reproduce.py configs/suites/table6.py --work-dir runs/table6 --root imagenet=/data/imagenet \
           --root inat2017=/data/inat2017 --root inat2018=/data/inat2018 --root inat2019=/data/inat2019 \
           --root places205=/data/places205 --root places365=/data/places365 --gpus-per-node 8
Cost:      about 2,700 h of pretraining; fine-tuning 160 h for all sets from ViT-B, 290 h from L, 780 h from H, 3,400 h
           at 448 px on one GPU at 100 TFLOP/s sustained (estimated from FLOPs). --only vit_b runs only the first.
Published: 70.5, 75.4, 80.5, 63.9, 57.9 (MAE, ViT-B: iNat 2017, 2018, 2019, Places205, Places365; table 6).
"""

title = "table 6"
tables = ("6",)
roots = {name: f"data/{name}" for name in ("imagenet", "inat2017", "inat2018", "inat2019", "places205", "places365")}
rows = {
    "MAE, ViT-B": dict(row="MAE", config="../pretrain/mae_vit_base_16_1600e.py", data="imagenet", hours=319.0, gib=10.0),
    "MAE, ViT-L": dict(row="MAE", config="../pretrain/mae_vit_large_16_1600e.py", data="imagenet", hours=695.0, gib=20.0),
    "MAE, ViT-H": dict(row="MAE", config="../pretrain/mae_vit_huge_14_1600e.py", data="imagenet", hours=1651.0, gib=40.0),
}
sizes = {  # changes of finetune_vit_large.py, _huge.py, _huge_448.py to finetune_vit_base.py; hours relative to ViT-B
    "B": ({}, 1.0),
    "L": ({"epochs": 50}, 1.8),
    "H": ({"epochs": 50, "protocol.drop_path": 0.2, "run.device_batch": 32}, 4.8),
    "H at 448": (
        {"epochs": 50, "protocol.drop_path": 0.2, "data.size": 448, "data.shorter_side": 1.0, "run.device_batch": 8, "run.checkpoint_activations": True}, 21.1,
    ),
}
transfer = {
    f"{name} {size}": dict(
        tool="cls_train", config=f"../classify/finetune_{name}.py", set=changes, rows=(f"MAE, ViT-{size[0]}",), data=name, hours=round(hours * share, 1), gib=10.0,
    )
    for name, hours in dict(inat2017=17.0, inat2018=13.0, inat2019=8.0, places205=71.0, places365=52.0).items()
    for size, (changes, share) in sizes.items()
}
del sizes
