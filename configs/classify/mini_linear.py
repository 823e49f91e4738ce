"""A row of linear probes on the mini backbone, on generated scenes (synthetic).

The best probe on held-out images is reported.

Command:   python tools/cls_train.py configs/classify/mini_linear.py --backbone runs/mini_mae/backbone.safetensors \
           --work-dir runs/mini_lin
Cost:      about 25 seconds on one CPU core.
Published: none for generated scenes.
"""

_base_ = "mini.py"

data = dict(holdout_fraction=0.1, augmentation=dict(name="byol_crop", scale=(0.7, 1.0)))
protocol = dict(_delete_=True, name="linear", rates=(0.3, 1.0, 3.0), pools=("cls", "mean"))
optim = dict(_delete_=True, algorithm=dict(name="lars"), blr=60.0, weight_decay=0.0)
