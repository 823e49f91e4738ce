"""A small ViT from scratch on 64-px images: the baseline for small_finetune.py.

It has the same budget and recipe.

Command:   python tools/cls_train.py configs/classify/small_scratch.py --work-dir runs/tiny_scratch \
           --set data.root=/data/tinyimagenet
Cost:      20,000 images x 20 epochs: minutes on a GPU, a quarter of an hour on two CPU cores.
Published: none at this scale.
"""

_base_ = "small_finetune.py"

backbone = dict(encoder=dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64))
optim = dict(layer_decay=1.0)
