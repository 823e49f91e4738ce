"""Table 7 of MAE: pixels against tokens. Raw pixels, normalised pixels and dVAE tokens on ImageNet, COCO and ADE20K, ViT-B/16, three seeds.

Command:   python tools/reproduce.py configs/suites/table7.py --work-dir runs/table7 --root imagenet=/data/imagenet --root coco=/data/coco \
             --root ade=/data/ADEChallengeData2016 --launcher slurm --gpus-per-node 8 --nodes 4
Cost:      about 1,000 h of pretraining, 110 h of fine-tuning and 350 h of detection per seed on one GPU at 100 TFLOP/s sustained (estimated from FLOPs),
           and 212 h of RTX 3090 per segmentation (published by mae_segmentation). The tokenizer's encoder.pkl has to lie in the current folder.
Published: 83.3, 83.6, 83.6 top-1; 49.5, 50.3, 50.3 box AP; 48.0, 48.1, 48.1 mIoU (pixels, normalised pixels, tokens; ViT-B; table 7).
"""

title = "table 7"
tables = ("7", "3", "4", "5")
seeds = (0, 1, 2)
roots = dict(imagenet="data/imagenet", coco="data/coco", ade="data/ADEChallengeData2016")
base = "../pretrain/mae_vit_base_16_1600e.py"
rows = {
    "pixel (w/o norm)": dict(config=base, set={"target": {"name": "pixel"}}, data="imagenet", hours=319.0, gib=10.0),
    "pixel (w/ norm)": dict(config=base, data="imagenet", hours=319.0, gib=10.0),
    "dVAE token": dict(config=base, set={"target": {"name": "token", "tokenizer": "dalle:encoder.pkl"}}, data="imagenet", hours=380.0, gib=10.0),
}
transfer = {
    "finetune": dict(tool="cls_train", config="../classify/finetune_vit_base.py", data="imagenet", hours=37.0, gib=5.0),
    "coco": dict(tool="det_train", config="../detect/mask_rcnn_vit_base_li2021_100ep.py", data="coco", hours=118.0, gib=5.0),
    "ade": dict(tool="seg_train", config="../segment/upernet_vit_base_160k.py", data="ade", hours=212.0, gib=5.0),
}
del base
