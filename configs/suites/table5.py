"""Table 5 of MAE: UperNet on ADE20K, ViT-B and ViT-L, own and released weights.

The rate is the one that reproduced 48.1 in public. It is not searched.

Command:   python tools/reproduce.py configs/suites/table5.py --work-dir runs/table5 \
           --root ade=/data/ADEChallengeData2016 --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      about 1,000 h of pretraining on one GPU at 100 TFLOP/s sustained (estimated); 212 h of RTX 3090 per
           ViT-B run (published by mae_segmentation).
Published: 48.1 / 53.6 mIoU (MAE, ViT-B / L), 47.3 MoCo v3, 47.1 BEiT (table 5).
"""

title = "table 5"
tables = ("5", "ade")
roots = dict(ade="data/ADEChallengeData2016", imagenet="data/imagenet")
rows = {
    "MAE, ViT-B": dict(row="MAE", config="../pretrain/mae_vit_base_16_1600e.py", data="imagenet", hours=319.0, gib=10.0),
    "MAE, ViT-L": dict(row="MAE", config="../pretrain/mae_vit_large_16_1600e.py", data="imagenet", hours=695.0, gib=20.0),
    "DeiT, ViT-B": dict(row="DeiT (supervised)", backbone="released:deit_base"),  # the paper does not state the weights of its supervised row
    "BEiT, ViT-B": dict(row="BEiT, ImageNet-22K", backbone="released:beit_base"),  # the paper's were pretrained on ImageNet-1K
    "MoCo v3, ViT-B": dict(row="MoCo v3", backbone="released:moco_v3_vit_base"),
}
transfer = {
    "ade B": dict(
        tool="seg_train", config="../segment/upernet_vit_base_160k.py", rows=("MAE, ViT-B", "MoCo v3, ViT-B", "DeiT, ViT-B"), data="ade",
        device="RTX 3090", hours=212.0, gib=5.0,
    ),
    "ade BEiT": dict(tool="seg_train", config="../segment/upernet_beit_base_160k.py", rows=("BEiT, ViT-B",), data="ade", device="RTX 3090", hours=212.0, gib=5.0),
    "ade L": dict(tool="seg_train", config="../segment/upernet_vit_large_160k.py", rows=("MAE, ViT-L",), data="ade", device="RTX 3090", hours=550.0, gib=10.0),
}
