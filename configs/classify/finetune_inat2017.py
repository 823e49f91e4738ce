"""Fine-tuning on iNaturalist 2017 (5,089 classes) in the layout train/<class>/, val/<class>/, folders within a class included.

Command:   python tools/cls_train.py configs/classify/finetune_inat2017.py --backbone runs/mae_b/backbone.safetensors --work-dir runs/inat2017 --set data.root=/data/inat2017
Cost:      100 epochs of its training images.
Published: 70.5 / 75.7 / 79.3 / 83.4 top-1 for ViT-B / L / H / H at 448 px (table 6). The recipe here is that of ImageNet fine-tuning, unadjusted.
"""

_base_ = "finetune_vit_base.py"
