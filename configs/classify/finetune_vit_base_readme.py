"""Fine-tuning of ViT-B/16 with the recipe of the released weights.

It is that of the release's FINETUNE.md, not of table 9.

Command:   python tools/cls_train.py configs/classify/finetune_vit_base_readme.py \
           --backbone mae:mae_pretrain_vit_base.pth --work-dir runs/ft_base_readme --set data.root=/data/imagenet
Cost:      100 epochs, 128 million images.
Published: 83.66 top-1 (the released weights evaluate to 83.664); 83.57 +- 0.08 over 4 trials.
"""

_base_ = "finetune_vit_base.py"

epochs = 100
protocol = dict(drop_path=0.1, erase=0.25)
optim = dict(blr=0.0005, layer_decay=0.65)
schedule = dict(min_lr=1e-6)
run = dict(device_batch=128)
