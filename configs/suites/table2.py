"""Table 2 of MAE: hours, tokens and FLOPs of pretraining.

Pretraining is with and without mask tokens in the encoder; the decoders have 8 blocks and 1.

Command:   python tools/reproduce.py configs/suites/table2.py --work-dir runs/table2 --root imagenet=/data/imagenet \
           --gpus-per-node 8
Cost:      about 3,300 h of pretraining and 550 h of fine-tuning on one GPU at 100 TFLOP/s sustained (estimated from
           FLOPs).
Published: 84.2 in 42.4 h, 84.9 in 15.4 h, 84.8 in 11.6 h (ViT-L), 85.8 in 34.5 h, 85.9 in 29.3 h (ViT-H) on 128 TPU-v3
           cores (table 2).
"""

title = "table 2"
tables = ("2", "3")
roots = dict(imagenet="data/imagenet")
pixel = {"target.name": "pixel"}
large, huge = "../pretrain/mae_vit_large_16_800e.py", "../pretrain/mae_vit_huge_14_800e.py"
rows = {
    "ViT-L/16, w/ [M], 8 blocks": dict(config=large, set={**pixel, "model.corrupt": "mask_token"}, data="imagenet", hours=1140.0, gib=20.0),
    "ViT-L/16, 8 blocks": dict(config=large, set=pixel, data="imagenet", hours=350.0, gib=20.0),
    "ViT-L/16, 1 block": dict(config=large, set={**pixel, "model.decoder.depth": 1}, data="imagenet", hours=272.0, gib=20.0),
    "ViT-H/14, 8 blocks": dict(config=huge, set=pixel, data="imagenet", hours=825.0, gib=40.0),
    "ViT-H/14, 1 block": dict(config=huge, set={**pixel, "model.decoder.depth": 1}, data="imagenet", hours=725.0, gib=40.0),
}
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/finetune_vit_large.py", rows=tuple(list(rows)[:3]), data="imagenet", hours=66.0, gib=10.0),
    "finetune huge": dict(tool="cls_train", config="../classify/finetune_vit_huge.py", rows=tuple(list(rows)[3:]), data="imagenet", hours=178.0, gib=20.0),
}
del pixel, large, huge
