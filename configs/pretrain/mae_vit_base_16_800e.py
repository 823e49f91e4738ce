"""MAE, ViT-B/16, 800 epochs of ImageNet-1K (He et al., arXiv 2111.06377, table 8).

The other paper-scale pretrainings extend this config.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/mae_vit_base_16_800e.py \
           --work-dir runs/mae_b_800e --set data.root=/data/imagenet
Cost:      800 epochs are 1.02 billion images; `tools/benchmark.py pretrain` measures your images/s. The paper
           states hours only for ViT-L and -H.
Published: none for ViT-B at 800 epochs in the paper; mmpretrain's run: fine-tuning 83.3, linear probe 65.1 top-1 (its
           README, configs/mae).
"""

scale = "paper"
epochs = 800
batch = 4096
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="random_crop", scale=(0.2, 1.0)),
)
model = dict(encoder=dict(size="vit_base", patch=16, image_size=224), decoder=dict(depth=8, dim=512, heads=16))
mask = dict(name="random", ratio=0.75)
target = dict(name="norm_pixel")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.95)), blr=1.5e-4, weight_decay=0.05)
schedule = dict(kind="cosine", warmup_epochs=40, min_lr=0.0)
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=256, workers=10)
