"""Linear probing with several learning rates, on the class token and on the patch mean, in one run.

The best probe on held-out images is reported.

Command:   python tools/cls_train.py configs/classify/linear_probe_row.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/lin_row --set data.root=/data/imagenet
Cost:      as linear_probe.py: 90 epochs for the whole row.
Published: none for the row; linear_probe.py has the recipe and numbers of one probe.
"""

_base_ = "linear_probe.py"

data = dict(holdout_fraction=0.02)
protocol = dict(rates=(0.1, 0.2, 0.5, 1.0, 2.0), pools=("cls", "mean"))
