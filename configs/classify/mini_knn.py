"""Weighted k-NN of the mini backbone on generated scenes (synthetic).

Command:   python tools/cls_train.py configs/classify/mini_knn.py --backbone runs/mini_mae/backbone.safetensors \
           --work-dir runs/mini_knn
Cost:      10 seconds on one CPU core.
Published: none for generated scenes.
"""

task = "knn"
scale = "mini"
data = dict(
    train=dict(name="shapes", size=32, length=4096, objects=(1, 1)),
    val=dict(name="shapes", size=32, length=1000, seed=1, objects=(1, 1)),
    size=32,
)
pool = "mean"
ks = (20,)
precision = "float32"
run = dict(workers=0)
