"""Votes of similar training patches on the frozen features of a ViT-B/16, ADE20K.

CAPI's protocol (k = 1, 3, 10 or 30 by the mIoU of held-out training images) at 512 px. CAPI reports at 224 px:
--set data.size=224.

Command:   python tools/seg_train.py configs/segment/frozen_knn.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/seg_knn --set data.root=/data/ADEChallengeData2016
Cost:      one forward pass over 22,210 images and 2 million queries of 500,000 patches (1.6e15 operations).
Published: none at this size.
"""

task = "frozen-knn"
scale = "paper"
data = dict(train=dict(name="ade", split="training"), val=dict(name="ade", split="validation"), size=512)
ks = (1, 3, 10, 30)
bank = 500_000
precision = "bfloat16"
run = dict(workers=10)
