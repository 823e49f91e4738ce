"""Classify images with a pretrained backbone: fine-tune it, train its last blocks or linear probes on it, or let its nearest neighbours vote.

    python tools/cls_train.py configs/classify/finetune_vit_base.py --backbone runs/mae_b/backbone.safetensors --work-dir runs/ft
    python tools/cls_train.py configs/classify/partial.py --backbone mae:mae_pretrain_vit_large.pth --set protocol.tune_blocks=4 --work-dir runs/part4
    python tools/cls_train.py configs/classify/linear_probe.py --backbone moco-v3:vit-b-300ep.pth.tar --work-dir runs/lin
    python tools/cls_train.py configs/classify/knn.py --backbone timm:vit_base_patch16_224.dino --work-dir runs/knn
    python tools/cls_train.py configs/classify/finetune_vit_base.py --eval --checkpoint mae-finetuned:mae_finetuned_vit_base.pth
    python tools/cls_train.py configs/classify/robustness.py --eval --checkpoint mae-finetuned:mae_finetuned_vit_base.pth --set variants=...
    torchrun --nproc-per-node 8 tools/cls_train.py CONFIG --backbone REF --work-dir D --resume                     eight GPUs, continued

D ends with checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png, tensorboard/ and results.jsonl (the numbers). What the data
set is called and where it lies: --set data.root=/data/imagenet (train/<class>/*.jpg, val/<class>/*.jpg).
"""

import sys

from mae_transfer import cli
from mae_transfer.tasks import classify, knn, robustness

TASKS = {
    "classify": cli.Task(classify.ClassifyConfig, classify.run, classify.evaluate_checkpoint),
    "knn": cli.Task(knn.KnnConfig, knn.run),
    "robustness": cli.Task(robustness.RobustnessConfig, None, robustness.evaluate),
}

if __name__ == "__main__":
    sys.exit(cli.transfer(TASKS, description=__doc__))
