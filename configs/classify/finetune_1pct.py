"""Fine-tuning with 1 % of ImageNet-1K's labels.

The images are the same in every run (fixed lists per class).

Command:   python tools/cls_train.py configs/classify/finetune_1pct.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/ft_1pct --set data.root=/data/imagenet
Cost:      100 epochs of 13,000 images.
Published: none in the paper. It uses the fine-tuning recipe and reports the best epoch on a held-out fifth of the
           labels.
"""

_base_ = "finetune_vit_base.py"

batch = 256
data = dict(label_fraction=0.01, holdout_fraction=0.2)
select = "best"
evaluate_epochs = 5
