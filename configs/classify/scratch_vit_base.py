"""ViT-B/16 from scratch on ImageNet-1K (MAE, table 11): the baseline for pretraining.

Command:   python tools/cls_train.py configs/classify/scratch_vit_base.py --work-dir runs/scratch_base \
           --set data.root=/data/imagenet
Cost:      300 epochs, 384 million images.
Published: 82.3 top-1 (table 3).
"""

scale = "paper"
epochs = 300
batch = 4096
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="rand_augment", policy="rand-m9-mstd0.5-inc1"),
)
backbone = dict(encoder=dict(size="vit_base", patch=16, image_size=224))
protocol = dict(name="finetune", pool="mean", drop_path=0.1, mixup=0.8, cutmix=1.0, smoothing=0.1)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.95)), blr=1e-4, weight_decay=0.3)
schedule = dict(kind="cosine", warmup_epochs=20)
precision = "bfloat16"
ema_decay = 0.9999
run = dict(device_batch=128, workers=10)
