"""Table 6 of MAE: fine-tuning on iNaturalist and Places, from a ViT-B/16 pretrained here. The recipe is ImageNet's, unadjusted.

Command:   python tools/reproduce.py configs/suites/table6.py --work-dir runs/table6 --root imagenet=/data/imagenet --root inat2018=/data/inat2018 --gpus-per-node 8
Cost:      319 h of pretraining and 10 to 70 h per data set on one GPU at 100 TFLOP/s sustained (an estimate from the models' FLOPs).
Published: 70.5, 75.4, 80.5, 63.9, 57.9 (MAE, ViT-B: iNat 2017, 2018, 2019, Places205, Places365; table 6).
"""

title = "table 6"
tables = ("6",)
roots = {name: f"data/{name}" for name in ("imagenet", "inat2017", "inat2018", "inat2019", "places205", "places365")}
rows = {"MAE": dict(config="../pretrain/mae_vit_base_16_1600e.py", data="imagenet", hours=319.0, gib=10.0)}
transfer = {
    name: dict(tool="cls_train", config=f"../classify/finetune_{name}.py", data=name, hours=hours, gib=5.0)
    for name, hours in dict(inat2017=17.0, inat2018=13.0, inat2019=8.0, places205=71.0, places365=52.0).items()
}
