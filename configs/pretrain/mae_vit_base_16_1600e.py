"""MAE, ViT-B/16, 1600 epochs of ImageNet-1K: the backbone of the paper's transfer tables 3-7.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mae_vit_base_16_1600e.py \
           --work-dir runs/mae_b --set data.root=/data/imagenet
Cost:      1600 epochs are 2.05 billion images, twice mae_vit_base_16_800e.py.
Published: fine-tuning 83.6 (MAE, table 3), linear probe 68.0 (MAE, table 12), COCO box AP 50.3 (table 4), ADE20K mIoU
           48.1 (table 5).
"""

_base_ = "mae_vit_base_16_800e.py"

epochs = 1600
