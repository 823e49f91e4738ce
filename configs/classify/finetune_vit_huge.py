"""Fine-tuning of ViT-H/14 on ImageNet-1K with the rates of MAE's table 9.

It pools as finetune_vit_base.py does.

Command:   python tools/cls_train.py configs/classify/finetune_vit_huge.py --backbone runs/mae_h/backbone.safetensors \
           --work-dir runs/ft_h --set data.root=/data/imagenet
Cost:      50 epochs, 64 million images.
Published: 86.9 top-1 (table 3).
"""

_base_ = "finetune_vit_base.py"

epochs = 50
protocol = dict(drop_path=0.2)
run = dict(device_batch=32)
