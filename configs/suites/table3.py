"""Table 3 of MAE: fine-tuning on ImageNet-1K, with table 12 (linear probing) and the survey.

Other methods use their released weights and MAE's recipe. The paper's numbers of them come from their own recipes
(MoCo v3: DeiT's, 150 epochs), so they do not stand beside these runs.

Command:   python tools/reproduce.py configs/suites/table3.py --work-dir runs/table3 --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      about 2,700 h of pretraining, 1,200 h of fine-tuning, 190 h of probing and 1,100 h from scratch on one GPU at
           100 TFLOP/s sustained (estimated from FLOPs).
Published: 83.6 / 85.9 / 86.9 / 87.8 (MAE, ViT-B / L / H / H at 448), 82.3 / 82.6 / 83.1 from scratch (table 3); 68.0 /
           75.8 / 76.6 linear (table 12).
"""

title = "table 3"
tables = ("3", "12", "survey")
roots = dict(imagenet="data/imagenet")
half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
rows = {
    "MAE, ViT-B": dict(row="MAE", config="../pretrain/mae_vit_base_16_1600e.py", data="imagenet", hours=319.0, gib=10.0),
    "MAE, ViT-L": dict(row="MAE", config="../pretrain/mae_vit_large_16_1600e.py", data="imagenet", hours=695.0, gib=20.0),
    "MAE, ViT-H": dict(row="MAE", config="../pretrain/mae_vit_huge_14_1600e.py", data="imagenet", hours=1651.0, gib=40.0),
    "DINO, ViT-B": dict(row="DINO", backbone="timm:vit_base_patch16_224.dino"),
    "MoCo v3, ViT-B": dict(row="MoCo v3", backbone="released:moco_v3_vit_base"),
    "BEiT, ViT-B": dict(row="BEiT, ImageNet-22K", backbone="released:beit_base", fresh=half),  # the paper's were pretrained on ImageNet-1K
    "scratch": dict(row="none (scratch)"),
}
base = ("MAE, ViT-B", "DINO, ViT-B", "MoCo v3, ViT-B", "BEiT, ViT-B")
transfer = {
    "finetune B": dict(tool="cls_train", config="../classify/finetune_vit_base.py", rows=base, data="imagenet", hours=37.0, gib=5.0),
    "finetune L": dict(tool="cls_train", config="../classify/finetune_vit_large.py", rows=("MAE, ViT-L",), data="imagenet", hours=66.0, gib=10.0),
    "finetune H": dict(tool="cls_train", config="../classify/finetune_vit_huge.py", rows=("MAE, ViT-H",), data="imagenet", hours=178.0, gib=20.0),
    "finetune H448": dict(tool="cls_train", config="../classify/finetune_vit_huge_448.py", rows=("MAE, ViT-H",), data="imagenet", hours=780.0, gib=20.0),
    "linear B": dict(tool="cls_train", config="../classify/linear_probe.py", rows=base, data="imagenet", hours=11.0, gib=5.0),
    "linear L": dict(tool="cls_train", config="../classify/linear_probe.py", rows=("MAE, ViT-L",), data="imagenet", hours=39.0, gib=5.0),
    "linear H": dict(tool="cls_train", config="../classify/linear_probe.py", rows=("MAE, ViT-H",), data="imagenet", hours=107.0, gib=5.0),
    "scratch B": dict(tool="cls_train", config="../classify/scratch_vit_base.py", rows=("scratch",), data="imagenet", hours=112.0, gib=5.0),
    "scratch L": dict(tool="cls_train", config="../classify/scratch_vit_large.py", rows=("scratch",), data="imagenet", hours=264.0, gib=10.0),
    "scratch H": dict(tool="cls_train", config="../classify/scratch_vit_huge.py", rows=("scratch",), data="imagenet", hours=714.0, gib=20.0),
}
del base, half
