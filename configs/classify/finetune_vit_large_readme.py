"""Fine-tuning of ViT-L/16 with the recipe of the released weights.

It is that of the release's FINETUNE.md, not of table 9.

Command:   python tools/cls_train.py configs/classify/finetune_vit_large_readme.py \
           --backbone mae:mae_pretrain_vit_large.pth --work-dir runs/ft_large_readme --set data.root=/data/imagenet
Cost:      50 epochs, 64 million images.
Published: 85.95 top-1 (the released weights evaluate to 85.952); 85.87 +- 0.07 over 4 trials.
"""

_base_ = "finetune_vit_base.py"

epochs = 50
protocol = dict(drop_path=0.2, erase=0.25)
optim = dict(blr=0.001, layer_decay=0.75)
schedule = dict(min_lr=1e-6)
run = dict(device_batch=128)
