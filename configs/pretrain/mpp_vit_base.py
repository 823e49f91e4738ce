"""Masked patch prediction, ViT-B/16, 300 epochs (the ViT paper, arXiv 2010.11929, B.1.2).

Configured from MAE's components. Half of the patches are corrupted (80 % by a mask token, 10 % by another patch, 10 %
kept). A linear head predicts their mean colour in 3 bits per channel (512 classes). The paper trained on JFT for 1M
steps; this config trains on ImageNet-1K for 300 epochs (94k steps) with the paper's warm-up of 10k steps. Weights are
initialised as in the paper's repository (google-research/vision_transformer).

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mpp_vit_base.py --work-dir runs/mpp_b \
           --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images; the encoder processes every patch, 4 times as many as MAE's.
Published: none in this package's tables.
"""

scale = "paper"
epochs = 300
batch = 4096
mean = std = (0.5, 0.5, 0.5)
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="random_crop", scale=(0.08, 1.0)),
)
model = dict(encoder=dict(size="vit_base", patch=16, image_size=224, positions="learned", init="vit"), decoder=dict(depth=0), corrupt="bert")
mask = dict(name="random", ratio=0.5)
target = dict(name="mean_colour")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=2e-4, weight_decay=0.05)
schedule = dict(kind="cosine", warmup_epochs=32)
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=256, workers=10)
