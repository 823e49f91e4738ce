"""Logistic regression of patches on the frozen features of a ViT-B/16, ADE20K; C is chosen on held-out training images.

Command:   python tools/seg_train.py configs/segment/frozen_logreg.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/seg_logreg --set data.root=/data/ADEChallengeData2016
Cost:      one forward pass over 22,210 images, then 9 fits of L-BFGS on 500,000 patches.
Published: none at this size.
"""

task = "frozen-logreg"
scale = "paper"
data = dict(train=dict(name="ade", split="training"), val=dict(name="ade", split="validation"), size=512)
bank = 500_000
precision = "bfloat16"
run = dict(workers=10)
