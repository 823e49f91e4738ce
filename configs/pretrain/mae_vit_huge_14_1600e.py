"""MAE, ViT-H/14, 1600 epochs of ImageNet-1K: the backbone of the paper's tables 3 and 6.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mae_vit_huge_14_1600e.py \
           --work-dir runs/mae_h --set data.root=/data/imagenet
Cost:      twice mae_vit_huge_14_800e.py.
Published: fine-tuning 86.9 (MAE, table 3), linear probe 76.6 (table 12).
"""

_base_ = "mae_vit_base_16_800e.py"

epochs = 1600
model = dict(encoder=dict(size="vit_huge", patch=14))
run = dict(device_batch=64)
