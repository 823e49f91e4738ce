"""MaskFeat, ViT-B/16, 300 epochs of ImageNet-1K (Wei et al., arXiv 2112.09133).

Configured from MAE's components: mask tokens in the encoder; 78 of 196 patches masked by blocks of at least 15;
histograms of oriented gradients; a linear head. It follows SlowFast's configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/maskfeat_vit_base.py \
           --work-dir runs/maskfeat_b --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images; the encoder processes every patch, 4 times as many as MAE's.
Published: none in this package's tables.
"""

scale = "paper"
epochs = 300
batch = 2048
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="random_crop", scale=(0.5, 1.0)),
)
model = dict(
    encoder=dict(size="vit_base", patch=16, image_size=224, positions="learned", init="maskfeat"), decoder=dict(depth=0), corrupt="mask_token"
)
mask = dict(name="block", ratio=0.397, min_block=15)  # hides round(0.4 * 196) patches; the block is a fifth of them
target = dict(name="hog")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), blr=2e-4, weight_decay=0.05, clip_norm=0.02)
schedule = dict(kind="cosine", warmup_epochs=30, warmup_factor=0.005, min_lr=8e-6)  # from 8e-6 to 1.6e-3 and back: 8 times its rates for 256 images
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=256, workers=10)
