"""Fine-tuning on Places205 (205 classes).

The data use ImageNet's folder layout; class folders may be nested.

Command:   python tools/cls_train.py configs/classify/finetune_places205.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/places205 --set data.root=/data/places205
Cost:      100 epochs of its training images.
Published: 63.9 / 65.8 / 65.9 / 66.8 top-1 for ViT-B / L / H / H at 448 px (table 6). It uses the ImageNet fine-tuning
           recipe, unadjusted.
"""

_base_ = "finetune_vit_base.py"
