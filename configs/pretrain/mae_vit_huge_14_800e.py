"""MAE, ViT-H/14, 800 epochs of ImageNet-1K.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mae_vit_huge_14_800e.py \
           --work-dir runs/mae_h_800e --set data.root=/data/imagenet
Cost:      the paper's run took 34.5 h on 128 TPU-v3 cores (table 2).
Published: fine-tuning 85.8 (MAE, table 2, pixels without normalisation: --set target.name=pixel).
"""

_base_ = "mae_vit_base_16_800e.py"

model = dict(encoder=dict(size="vit_huge", patch=14))
run = dict(device_batch=64)
