"""MAE, ViT-L/16, 800 epochs of ImageNet-1K: the default of the paper's ablations (table 1).

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mae_vit_large_16_800e.py \
           --work-dir runs/mae_l_800e --set data.root=/data/imagenet
Cost:      the paper's run took 15.4 h on 128 TPU-v3 cores (table 2); the authors' PyTorch run 42 h on 64 V100.
Published: fine-tuning 85.4, linear probe 73.9 with normalised pixels; 84.9 and 73.5 with --set target.name=pixel (MAE,
           table 1d).
"""

_base_ = "mae_vit_base_16_800e.py"

model = dict(encoder=dict(size="vit_large"))
run = dict(device_batch=128)
