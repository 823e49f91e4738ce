"""Fine-tuning on iNaturalist 2019 (1,010 classes).

The data use ImageNet's folder layout; class folders may be nested.

Command:   python tools/cls_train.py configs/classify/finetune_inat2019.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/inat2019 --set data.root=/data/inat2019
Cost:      100 epochs of its training images.
Published: 80.5 / 83.4 / 85.7 / 88.3 top-1 for ViT-B / L / H / H at 448 px (table 6). It uses the ImageNet fine-tuning
           recipe, unadjusted.
"""

_base_ = "finetune_vit_base.py"
