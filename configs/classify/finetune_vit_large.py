"""Fine-tuning of ViT-L/16 on ImageNet-1K with the rates of MAE's table 9.

It pools as finetune_vit_base.py does.

Command:   python tools/cls_train.py configs/classify/finetune_vit_large.py --backbone runs/mae_l/backbone.safetensors \
           --work-dir runs/ft_l --set data.root=/data/imagenet
Cost:      50 epochs, 64 million images.
Published: 85.9 top-1 (table 3, 1600 epochs); 84.9 (table 1, 800 epochs of raw pixels).
"""

_base_ = "finetune_vit_base.py"

epochs = 50
