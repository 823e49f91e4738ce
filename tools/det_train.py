"""Detect objects with a pretrained backbone: Mask R-CNN on COCO-format data, by torchvision out of the box or with detectron2's heads.

    python tools/det_train.py configs/detect/mini.py --work-dir runs/det                                  generated scenes, on a CPU, minutes
    python tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_100ep.py --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco \\
        --work-dir runs/det_b
    python tools/det_train.py CONFIG --eval --checkpoint runs/det_b/checkpoints/step_00184375.pt --visualize 20 --work-dir runs/det_b_eval
    torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vitdet_base_100ep.py --backbone REF --set engine=detectron2 --work-dir D

D ends with checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png, tensorboard/, predictions.json (COCO's result format),
detections/ (objects beside what was found) and results.jsonl (bbox and segm AP, AP50, AP75, by size, AR). Data lie as COCO 2017 does: train2017/,
val2017/ and annotations/instances_*.json; tools/prepare_data.py fetches and checks them, and docs/results/detect.md compares the two engines.
"""

import sys

from mae_transfer import cli
from mae_transfer.tasks import detect

TASKS = {"detect": cli.Task(detect.DetectConfig, detect.run, detect.evaluate_checkpoint)}

if __name__ == "__main__":
    sys.exit(cli.transfer(TASKS, description=__doc__, draws=True))
