"""The tables and figures that there are, in the order in which a report shows them."""

from __future__ import annotations

from mae_transfer.suite.tables import costs, places
from mae_transfer.suite.tables.places import Layout, by_backbone, by_suffix, labelled

DEFAULT = ("MAE", "pixel (w/ norm)")
ABLATION = "a suite with configs/ablations/table{}.py's rows: fine-tuning and linear probing of each"

_LAYOUTS: dict[str, Layout] = {
    "summary": Layout("Summary: pretrainings by tasks, %", "task", "any transfer", places.overview),
    "1a": Layout("Table 1a: decoder depth, top-1 %", "protocol", ABLATION.format("1a"), labelled("1a"), ("8 blocks",)),
    "1b": Layout("Table 1b: decoder width, top-1 %", "protocol", ABLATION.format("1b"), labelled("1b"), ("512-d",)),
    "1c": Layout(
        "Table 1c: mask token in the encoder, top-1 %",
        "protocol",
        ABLATION.format("1c"),
        places.mask_tokens,
        ("encoder w/o [M]",),
    ),
    "1d": Layout(
        "Table 1d: reconstruction target, top-1 %",
        "protocol",
        "fine-tuning or linear probing of MAEs of several targets",
        places.targets,
        ("pixel (w/o norm)", "pixel (w/ norm)"),
    ),
    "1e": Layout(
        "Table 1e: augmentation of pretraining, top-1 %",
        "protocol",
        ABLATION.format("1e"),
        labelled("1e"),
        ("crop, rand size",),
    ),
    "1f": Layout(
        "Table 1f: mask sampling, top-1 %",
        "protocol",
        "the same of MAEs with several kinds of masks",
        places.masks,
        ("random 75%",),
    ),
    "2": Layout(
        "Table 2: cost of pretraining",
        "cost",
        "pretraining runs; with configs/suites/table2.py's rows fine-tuning, too",
        costs.costs,
    ),
    "3": Layout(
        "Table 3: fine-tuning, top-1 %",
        "backbone",
        "cls_train.py with protocol finetune",
        by_backbone("finetune"),
        DEFAULT,
    ),
    "4": Layout(
        "Table 4: COCO Mask R-CNN, AP %", "metric, backbone", "det_train.py on COCO", places.detection, DEFAULT
    ),
    "5": Layout("Table 5: ADE20K UperNet, mIoU %", "backbone", "seg_train.py on ADE20K", places.segmentation, DEFAULT),
    "6": Layout(
        "Table 6: iNaturalist and Places, top-1 %",
        "data, backbone",
        "cls_train.py on those data sets",
        places.fine_grained,
        DEFAULT,
    ),
    "7": Layout(
        "Table 7: pixels against tokens, top-1 %, AP % and mIoU %",
        "data, backbone",
        "fine-tuning, detection or segmentation of MAEs of several targets",
        places.pixels_and_tokens,
        ("pixel (w/ norm)",),
    ),
    "12": Layout(
        "Table 12: linear probing, top-1 %",
        "backbone",
        "cls_train.py with protocol linear",
        by_backbone("linear"),
        DEFAULT,
    ),
    "13": Layout(
        "Table 13: robustness, top-1 %, and for imagenet-c the mean corruption error % (lower is better)",
        "variant, backbone",
        "cls_train.py configs/classify/robustness.py --eval",
        places.robustness,
        DEFAULT,
    ),
    "knn": Layout(
        "k-nearest neighbours, top-1 % (no table of the paper)",
        "k",
        "cls_train.py with a k-NN config",
        by_suffix("knn"),
        DEFAULT,
    ),
    "figure 5": Layout(
        "Figure 5: mask ratio, top-1 %",
        "hidden",
        "fine-tuning or linear probing of MAEs of several ratios",
        places.mask_ratios,
    ),
    "figure 7": Layout(
        "Figure 7: length of pretraining, top-1 %", "pretraining", "the same of MAEs of several lengths", places.lengths
    ),
    "figure 9": Layout(
        "Figure 9: partial fine-tuning, top-1 %",
        "tuned blocks",
        "cls_train.py with protocol partial, several tune_blocks",
        by_suffix("partial"),
        DEFAULT,
    ),
    "survey": Layout(
        "Methods side by side, as published", "protocol", "classification results of any method", places.survey
    ),
    "baseline": Layout("ViT-L/16 from scratch and from MAE (section 4)", "protocol", "published only", places.nothing),
    "coco": Layout(
        "COCO Mask R-CNN: schedules and variants",
        "metric, backbone",
        "det_train.py with 25, 50 or 100 epochs on COCO",
        places.schedules,
    ),
    "vitdet": Layout("ViTDet on COCO and LVIS", "metric, backbone", "det_train.py with a vitdet config", places.vitdet),
    "ade": Layout(
        "ADE20K UperNet: all figures, and others' runs", "metric, backbone", "seg_train.py", places.segmentation_figures
    ),
}
LAYOUTS = {table: layout._replace(table=table) for table, layout in _LAYOUTS.items()}
