"""Logistic regression on the features of a small ViT on 64-px images.

Command:   python tools/cls_train.py configs/classify/small_logreg.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/tiny_logreg --set data.root=/data/tinyimagenet
Cost:      a forward pass over 22,000 images, then 9 fits of L-BFGS: minutes on two CPU cores.
Published: none at this scale.
"""

task = "logreg"
scale = "small"
data = dict(train=dict(name="folder", split="train"), val=dict(name="folder", split="val"), size=64)
pool = "mean"
run = dict(workers=1)
