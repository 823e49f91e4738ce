"""Fine-tuning on Places365 (365 classes).

The data use ImageNet's folder layout; class folders may be nested.

Command:   python tools/cls_train.py configs/classify/finetune_places365.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/places365 --set data.root=/data/places365
Cost:      100 epochs of its training images.
Published: 57.9 / 59.4 / 59.8 / 60.3 top-1 for ViT-B / L / H / H at 448 px (table 6). It uses the ImageNet fine-tuning
           recipe, unadjusted.
"""

_base_ = "finetune_vit_base.py"
