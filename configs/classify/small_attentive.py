"""A row of linear and attentive probes of a small ViT on 64-px images.

The best probe of each head on held-out images is reported.

Command:   python tools/cls_train.py configs/classify/small_attentive.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/tiny_attentive --set data.root=/data/tinyimagenet
Cost:      as small_linear.py, forward only: minutes on two CPU cores.
Published: none at this scale.
"""

_base_ = "small_linear.py"

protocol = dict(heads=("linear", "efficient", "cross"), queries=32, head_width=64)
