"""Effective rank and spread of frozen ImageNet-1K features, which show a collapse; labels are not used.

data.root must hold class folders (train/<class>/, val/<class>/), as for the other evaluations.

Command:   python tools/cls_train.py configs/classify/statistics.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/statistics --set data.root=/data/imagenet
Cost:      one forward pass over 1.33 million images; the features of ViT-B take 3.9 GB of device memory.
Published: none for the rank as a share of the width.
"""

task = "statistics"
scale = "paper"
data = dict(train=dict(name="folder", split="train"), val=dict(name="folder", split="val"), size=224)
pool = "mean"
precision = "bfloat16"
run = dict(workers=10)
