"""BEiT, ViT-B/16, 800 epochs of ImageNet-1K (Bao et al., arXiv 2106.08254).

Configured from MAE's components: mask tokens in the encoder; 75 of 196 patches masked by blocks (a shortfall of BEiT's
loop is filled at random); shared relative positions; dVAE tokens of a 112-px Lanczos view; a linear head. BEiT's
command for ImageNet-1K normalises with ImageNet's statistics (--imagenet_default_mean_and_std); the release pretrained
on ImageNet-22K uses 0.5.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/beit_vit_base.py --work-dir runs/beit_b \
           --set data.root=/data/imagenet --set target.tokenizer=dalle:/ckpt/encoder.pkl
Cost:      800 epochs are 1.02 billion images; the encoder processes all 196 patches, 4 times as many as MAE's.
Published: fine-tuning 83.2 top-1 (MAE paper, table 3).
"""

scale = "paper"
epochs = 800
batch = 2048
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="random_crop", scale=(0.08, 1.0), jitter=0.4),
)
model = dict(
    encoder=dict(
        size="vit_base", patch=16, image_size=224, positions="none", relative_positions="shared", qkv_bias="qv", layer_scale=0.1, drop_path=0.1,
        init="beit",
    ),
    decoder=dict(depth=0),
    corrupt="mask_token",
)
mask = dict(name="block", ratio=0.382)
target = dict(name="token", tokenizer="dalle:encoder.pkl")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=1.5e-3, weight_decay=0.05, clip_norm=3.0, no_decay=("cls_token",))
schedule = dict(kind="cosine", warmup_epochs=10, min_lr=1e-5)
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=256, workers=10)
