"""Linear and attentive probes on frozen features of ImageNet-1K in one run: the protocol of efficient probing.

Source: Psomas et al., arXiv 2506.10178, and the README of billpsomas/efficient-probing: 90 epochs of LARS, batch 4096,
base rate 0.1. They report the best epoch on the validation set. Here the best rate of each head on held-out training
images is reported once, after the last epoch.

Command:   torchrun --nproc-per-node 8 tools/cls_train.py configs/classify/attentive_probe.py \
           --backbone released:mae_vit_base --work-dir runs/attentive --set data.root=/data/imagenet
           For DINO, whose class token is trained, let the heads read it, too: --set "protocol.tokens=('all',)".
Cost:      as linear_probe.py: 90 epochs, forward only, for the whole row.
Published: efficient 75.5, linear 67.8, k-NN 35.6 (MAE ViT-B); 64.9, 47.1, 8.6 (SimMIM ViT-B); 77.4, 77.2, 71.6 (DINO
           ViT-B). Head "cross" is that of CAPI (arXiv 2502.08769), whose probes train by AdamW.
"""

_base_ = "linear_probe.py"

batch = 4096
data = dict(holdout_fraction=0.02)
protocol = dict(rates=(0.3, 1.0, 3.0), heads=("linear", "efficient", "cross"), queries=32, head_width=64)
