"""Fine-tuning on iNaturalist 2018 (8,142 classes).

The data use ImageNet's folder layout; class folders may be nested.

Command:   python tools/cls_train.py configs/classify/finetune_inat2018.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/inat2018 --set data.root=/data/inat2018
Cost:      100 epochs of its training images.
Published: 75.4 / 80.1 / 83.0 / 86.8 top-1 for ViT-B / L / H / H at 448 px (table 6). It uses the ImageNet fine-tuning
           recipe, unadjusted.
"""

_base_ = "finetune_vit_base.py"
