"""Weighted k-NN of the mini backbone on generated scenes (synthetic).

Command:   python tools/cls_train.py configs/classify/mini_knn.py --backbone runs/mini_mae/backbone.safetensors --work-dir runs/mini_knn
Cost:      10 seconds on two CPU cores.
Published: none; nobody else trains on these.
"""

task = "knn"
scale = "mini"
data = dict(
    train=dict(name="shapes", size=64, length=2048),
    val=dict(name="shapes", size=64, length=256, seed=1),
    size=64,
)
pool = "mean"
ks = (20,)
precision = "float32"
run = dict(workers=1)
