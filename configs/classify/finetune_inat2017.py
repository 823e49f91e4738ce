"""Fine-tuning on iNaturalist 2017 (5,089 classes).

The data use ImageNet's folder layout; class folders may be nested.

Command:   python tools/cls_train.py configs/classify/finetune_inat2017.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/inat2017 --set data.root=/data/inat2017
Cost:      100 epochs of its training images.
Published: 70.5 / 75.7 / 79.3 / 83.4 top-1 for ViT-B / L / H / H at 448 px (table 6). It uses the ImageNet fine-tuning
           recipe, unadjusted.
"""

_base_ = "finetune_vit_base.py"
