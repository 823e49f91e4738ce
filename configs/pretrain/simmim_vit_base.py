"""SimMIM, ViT-B/16, 800 epochs of ImageNet-1K (Xie et al., arXiv 2111.09886).

Configured from MAE's components: mask tokens in the encoder; 60 % masked in squares of 32 px; shared relative
positions; raw pixels with an l1 loss; a linear head. It follows configs/vit_base__800ep of SimMIM's repository.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/simmim_vit_base.py --work-dir runs/simmim_b \
           --set data.root=/data/imagenet
Cost:      800 epochs are 1.02 billion images; the encoder processes every patch, 4 times as many as MAE's.
Published: none in this package's tables.
"""

scale = "paper"
epochs = 800
batch = 2048
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="random_crop", scale=(0.67, 1.0), interpolation="bilinear"),
)
model = dict(
    encoder=dict(
        size="vit_base", patch=16, image_size=224, positions="none", relative_positions="shared", qkv_bias="qv", layer_scale=0.1, drop_path=0.1,
        init="simmim",
    ),
    decoder=dict(depth=0),
    corrupt="mask_token",
)
mask = dict(name="random", ratio=0.6, unit=2)
target = dict(name="pixel", loss="l1")
# rates are per 256 images here, per 512 there (1e-4)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), blr=5e-5, weight_decay=0.05, clip_norm=5.0, no_decay=("cls_token",))
schedule = dict(kind="constant", milestones=(700.0,), gamma=0.1, warmup_epochs=10, warmup_factor=0.005)  # from 5e-7
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=256, workers=10)
