"""Robustness of a fine-tuned ViT-B/16 (MAE, table 13): ImageNet-A, -R, -Sketch and -C.

Evaluation only. A, R and Sketch are top-1 %, C is the mean corruption error %. For your own classifier, extend the
config that it was fine-tuned with, because protocol and size must match, and set `task` and `variants`.

Command:   python tools/cls_train.py configs/classify/robustness.py --eval \
           --checkpoint mae-finetuned:mae_finetuned_vit_base.pth --set data.root=/data/imagenet \
           --set "variants={'imagenet-a':'/data/imagenet-a','imagenet-c':'/data/imagenet-c'}"
Cost:      a forward pass over 7,500 (A), 30,000 (R), 50,889 (Sketch) and 3.75 million images (C).
Published: ViT-B: C 51.7 (lower is better), A 35.9, R 48.3, Sketch 34.5 (table 13).
"""

_base_ = "finetune_vit_base.py"

task = "robustness"
variants = {"imagenet-a": None, "imagenet-r": None, "imagenet-sketch": None, "imagenet-c": None}
