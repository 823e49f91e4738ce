"""Fine-tuning of ViT-H/14 with the recipe of the released weights.

It is that of the release's FINETUNE.md, not of table 9.

Command:   python tools/cls_train.py configs/classify/finetune_vit_huge_readme.py \
           --backbone mae:mae_pretrain_vit_huge.pth --work-dir runs/ft_huge_readme --set data.root=/data/imagenet
Cost:      50 epochs, 64 million images.
Published: 86.93 top-1 (the released weights evaluate to 86.928).
"""

_base_ = "finetune_vit_base.py"

epochs = 50
protocol = dict(drop_path=0.3, erase=0.25)
optim = dict(blr=0.001, layer_decay=0.75)
schedule = dict(min_lr=1e-6)
run = dict(device_batch=32)
