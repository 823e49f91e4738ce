"""Published numbers of dense transfer and of other data sets: tables 4, 5, 6 and 7 of the MAE paper, ViTDet, ADE20K by others."""

from __future__ import annotations

from mae_transfer.suite.published.entry import BASE_LARGE, MAE, SIZES, Published, block, each

AP = ("box AP", "mask AP")
LI = "Li et al., arXiv 2111.11429"
VITDET = "ViTDet, arXiv 2203.16527"
VITDET_README = "README of detectron2's projects/ViTDet"
SCHEDULES = "R. Girshick, https://github.com/facebookresearch/mae/issues/43"

COCO: tuple[Published, ...] = (
    *block(*each("4", f"{MAE}, table 4", AP, BASE_LARGE), {
        "supervised": (47.9, 49.3, 42.9, 43.9),
        "MoCo v3": (47.9, 49.3, 42.7, 44.0),
        "BEiT": (49.8, 53.3, 44.4, 47.1),
        "MAE": (50.3, 53.3, 44.9, 47.2),
    }),
    *block(*each("4", f"{LI}, text", AP[:1], BASE_LARGE), {"none (scratch)": (48.9, 50.7)}),
    *block(*each("4", "quoted without a document", AP[1:], BASE_LARGE), {"none (scratch)": (43.6, 44.9)}, confirmed=False),
    *block(*each("coco", SCHEDULES, AP, SIZES[:1]), {
        "MAE, 25 epochs": (48.1, 43.2), "MAE, 50 epochs": (50.1, 44.6), "MAE, 100 epochs": (50.3, 44.9),
    }),
    *block("coco", LI, ("box AP, ViT-L/16",), {
        "MAE, windows only": (50.7,), "MAE, windows and global blocks": (53.3,),
        "MAE, pretrained for 800 epochs": (53.1,), "MAE, pretrained for 1600 epochs": (53.3,),
    }),
    *block("coco", f"{LI} (50 epochs)", ("box AP, ViT-B/16",), {"MAE, single scale": (48.4,), "MAE, FPN": (50.1,)}),
)  # fmt: skip

FINAL: tuple[Published, ...] = (
    *block(*each("vitdet", VITDET_README, AP, SIZES[:3]), {
        "Mask R-CNN": (51.6, 55.5, 56.7, 45.9, 49.2, 50.2),
        "Cascade": (54.0, 57.6, 58.7, 46.7, 50.0, 51.0),
        "LVIS, Mask R-CNN": (40.2, 46.1, 49.1, 38.2, 43.6, 46.0),
    }),
    *block("vitdet", VITDET_README, ("standard deviation over seeds",), {
        "Mask R-CNN": (0.10,), "LVIS, Mask R-CNN": (0.30,),
    }),
    *block(*each("vitdet", f"{VITDET}, table 1 (pyramid)", AP, BASE_LARGE), {
        "no pyramid": (47.8, 51.2, 42.5, 45.4),
        "FPN, 4 stages": (50.3, 54.4, 44.9, 48.4),
        "FPN, last map": (50.9, 54.6, 45.3, 48.5),
        "simple pyramid": (51.2, 54.6, 45.5, 48.6),
    }),
    *block(*each("vitdet", f"{VITDET}, table of initialisations", AP, BASE_LARGE), {
        "random init": (48.1, 50.0, 42.6, 44.2),
        "ImageNet-1K, supervised": (47.6, 49.6, 42.4, 43.8),
        "ImageNet-21K, supervised": (47.8, 50.6, 42.6, 44.8),
        "ImageNet-1K, MAE": (51.2, 54.6, 45.5, 48.6),
    }),
    *block("vitdet", f"{VITDET}, table of global blocks", ("box AP, ViT-B/16",), {
        "0 global blocks": (48.9,), "2 global blocks": (50.7,), "4 global blocks": (51.2,), "12 global blocks": (50.4,),
    }),
)  # fmt: skip

MULTI = "mIoU, several scales"
ADE: tuple[Published, ...] = (
    *block("5", f"{MAE}, table 5", BASE_LARGE, {
        "supervised": (47.4, 49.9), "MoCo v3": (47.3, 49.1), "BEiT": (47.1, 53.3), "MAE": (48.1, 53.6),
    }),
    *block("ade", "README of implus/mae_segmentation", ("mIoU, ViT-B/16", "mAcc, ViT-B/16", "aAcc, ViT-B/16"), {"MAE": (48.15, 58.99, 83.05)}),
    *block("ade", "README of implus/mae_segmentation", ("mIoU, ViT-B/16",), {"MAE at 80k iterations": (46.0,), "MAE at 128k iterations": (47.7,)}),
    *block("ade", "mmsegmentation, configs/mae", ("mIoU, ViT-B/16", f"{MULTI}, ViT-B/16"), {"MAE, mmsegmentation": (48.13, 48.70)}),
    *block("ade", "README of microsoft/unilm's beit", ("mIoU, ViT-B/16", f"{MULTI}, ViT-B/16"), {"BEiT, 640 px, ImageNet-22K": (53.6, 54.2)}),
    *block("ade", "README of microsoft/unilm's beit", ("mIoU, ViT-L/16", f"{MULTI}, ViT-L/16"), {"BEiT, 640 px, ImageNet-22K": (56.7, 57.0)}),
    *block("ade", "segmentation README of microsoft/unilm's beit", ("mIoU, ViT-B/16", f"{MULTI}, ViT-B/16"), {
        "BEiT, 640 px, ImageNet-22K, more decimals": (53.61, 54.26),
    }),
    *block("ade", "quoted without a document", ("mIoU, ViT-B/16",), {"BEiT, ImageNet-1K": (45.6,)}, confirmed=False),
)  # fmt: skip

FINE_GRAINED = ("iNat 2017", "iNat 2018", "iNat 2019", "Places205", "Places365")
TABLE_6: tuple[Published, ...] = (
    *block(*each("6", f"{MAE}, table 6", FINE_GRAINED, SIZES), {"MAE": (
        70.5, 75.7, 79.3, 83.4, 75.4, 80.1, 83.0, 86.8, 80.5, 83.4, 85.7, 88.3, 63.9, 65.8, 65.9, 66.8, 57.9, 59.4, 59.8, 60.3,
    )}),
    *block("6", f"{MAE}, table 6 (the best before it, any architecture)", FINE_GRAINED, {"previous best": (75.4, 81.2, 84.1, 66.0, 58.0)}),
)  # fmt: skip

TABLE_7: tuple[Published, ...] = (
    *block(*each("7", f"{MAE}, table 7", ("ImageNet",), SIZES[:3]), {
        "pixel (w/o norm)": (83.3, 85.1, 86.2), "pixel (w/ norm)": (83.6, 85.9, 86.9), "dVAE token": (83.6, 85.7, 86.9),
        "token - pixel (w/ norm)": (0.0, -0.2, 0.0),
    }),
    *block(*each("7", f"{MAE}, table 7", ("COCO box AP",), BASE_LARGE), {
        "pixel (w/o norm)": (49.5, 52.8), "pixel (w/ norm)": (50.3, 53.3), "dVAE token": (50.3, 53.2), "token - pixel (w/ norm)": (0.0, -0.1),
    }),
    *block(*each("7", f"{MAE}, table 7", ("ADE20K mIoU",), BASE_LARGE), {
        "pixel (w/o norm)": (48.0, 51.8), "pixel (w/ norm)": (48.1, 53.6), "dVAE token": (48.1, 53.4), "token - pixel (w/ norm)": (0.0, -0.2),
    }),
)  # fmt: skip

DENSE = COCO + FINAL + ADE + TABLE_6 + TABLE_7
