"""DINO, ViT-B/16, 400 epochs of ImageNet-1K (Caron et al., arXiv 2104.14294): the released model.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/dino_vit_base.py --work-dir runs/dino_b \
           --set data.root=/data/imagenet
Cost:      400 epochs are 512 million images of 12 views.
Published: k-NN 76.1, linear 78.2 (README of facebookresearch/dino); fine-tuning 82.8.
"""

task = "joint"
scale = "paper"
epochs = 400
batch = 1024
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    views=dict(narrow=10, narrow_size=96, wide_scale=(0.25, 1.0), narrow_scale=(0.05, 0.25)),
)
model = dict(
    encoder=dict(size="vit_base", patch=16, image_size=224, positions="learned", antialias=False, drop_path=0.1, init="dino")
)
objective = dict(name="distill", out=65536, freeze_epochs=3, warmup_temperature=0.04, teacher_temperature=0.07, warmup_epochs=50)
optim = dict(algorithm=dict(name="adamw"), blr=7.5e-4, weight_decay=dict(start=0.04, end=0.4, epochs="100%"), clip_norm=dict(each=0.3))
schedule = dict(warmup_epochs=10, min_lr=2e-6)
ema_decay = dict(start=0.996, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=32, workers=10)
