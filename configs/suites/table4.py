"""Table 4 of MAE: Mask R-CNN on COCO with the protocol of Li et al. (2111.11429).

ViT-B and ViT-L; weights pretrained here, released and random.

Command:   python tools/reproduce.py configs/suites/table4.py --work-dir runs/table4 --root coco=/data/coco \
           --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      about 1,000 h of pretraining and 2,600 h of detection on one GPU at 100 TFLOP/s sustained (estimated from
           FLOPs).
Published: box AP 50.3 / 53.3, mask AP 44.9 / 47.2 (MAE, ViT-B / L); from scratch box AP 48.9 after 200 epochs (ViT-B;
           Li et al., section 4.2) and 50.7 (ViT-L; their text, without a length) (table 4).
"""

title = "table 4"
tables = ("4",)
roots = dict(coco="data/coco", imagenet="data/imagenet")
rows = {
    "MAE, ViT-B": dict(row="MAE", config="../pretrain/mae_vit_base_16_1600e.py", data="imagenet", hours=319.0, gib=10.0),
    "MAE, ViT-L": dict(row="MAE", config="../pretrain/mae_vit_large_16_1600e.py", data="imagenet", hours=695.0, gib=20.0),
    "MoCo v3, ViT-B": dict(row="MoCo v3", backbone="released:moco_v3_vit_base", fresh={"optim.lr": 1.6e-4}),
    "DeiT, ViT-B": dict(row="DeiT (supervised)", backbone="released:deit_base"),  # Li et al., section 3; their ViT-L is MAE's own
    "scratch": dict(row="none (scratch)"),
}
transfer = {
    "coco B": dict(
        tool="det_train", config="../detect/mask_rcnn_vit_base_li2021_100ep.py", rows=("MAE, ViT-B", "MoCo v3, ViT-B", "DeiT, ViT-B"), data="coco",
        hours=163.0, gib=5.0,
    ),
    "coco L": dict(tool="det_train", config="../detect/mask_rcnn_vit_large_li2021_100ep.py", rows=("MAE, ViT-L",), data="coco", hours=360.0, gib=10.0),
    "scratch B": dict(tool="det_train", config="../detect/mask_rcnn_vit_base_li2021_scratch_200ep.py", rows=("scratch",), data="coco", hours=326.0, gib=5.0),
    "scratch L": dict(tool="det_train", config="../detect/mask_rcnn_vit_large_li2021_scratch_400ep.py", rows=("scratch",), data="coco", hours=1441.0, gib=10.0),
}
