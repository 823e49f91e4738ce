"""MoCo v3, ViT-S/16, 300 epochs of ImageNet-1K (Chen et al., arXiv 2104.02057).

The negatives are the whole batch, so it is not split into micro-steps. Batch norms are synchronised over GPUs;
several processes on a CPU are refused, because each one's own statistics would tell its images apart.
As in the public code, all parameters have weight decay and crops are resized bilinearly.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/moco_v3_vit_small.py --work-dir runs/moco_s \
           --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images of 2 views; 8 devices hold 512 images each.
Published: linear 73.2, fine-tuning 81.4 (README of facebookresearch/moco-v3).
"""

_base_ = "moco_v3_vit_base.py"

model = dict(encoder=dict(size="vit_small", heads=12))
