"""MAE, ViT-L/16, 1600 epochs of ImageNet-1K: the backbone of the paper's transfer tables 3-7.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mae_vit_large_16_1600e.py \
           --work-dir runs/mae_l --set data.root=/data/imagenet
Cost:      twice mae_vit_large_16_800e.py.
Published: fine-tuning 85.9 (MAE, table 3), linear probe 75.8 (table 12), COCO box AP 53.3 (table 4), ADE20K mIoU 53.6
           (table 5).
"""

_base_ = "mae_vit_base_16_800e.py"

epochs = 1600
model = dict(encoder=dict(size="vit_large"))
run = dict(device_batch=128)
