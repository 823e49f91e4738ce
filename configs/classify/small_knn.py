"""Weighted k-NN of a small ViT on 64-px images.

Command:   python tools/cls_train.py configs/classify/small_knn.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/tiny_knn --set data.root=/data/tinyimagenet
Cost:      a forward pass over 22,000 images: a minute on two CPU cores.
Published: none at this scale.
"""

task = "knn"
scale = "small"
data = dict(train=dict(name="folder", split="train"), val=dict(name="folder", split="val"), size=64)
pool = "mean"
ks = (10, 20, 100, 200)
run = dict(workers=1)
