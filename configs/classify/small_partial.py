"""Partial fine-tuning of a small ViT on 64-px images.

Set the number of blocks with --set protocol.tune_blocks=0, half, 1, 2, 4 or all.

Command:   python tools/cls_train.py configs/classify/small_partial.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/tiny_part2 --set data.root=/data/tinyimagenet
Cost:      20,000 images x 20 epochs: minutes on a GPU, a quarter of an hour on two CPU cores.
Published: none at this scale; accuracy should rise with the number of blocks (figure 9).
"""

_base_ = "small_finetune.py"

protocol = dict(name="partial", tune_blocks=2)
