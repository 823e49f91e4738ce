"""iBOT, ViT-S/16, 800 epochs of ImageNet-1K (Zhou et al., arXiv 2111.07832): the released model.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/ibot_vit_small.py --work-dir runs/ibot_s \
           --set data.root=/data/imagenet
Cost:      800 epochs are 1.02 billion images of 12 views.
Published: k-NN 75.2, linear 77.9, fine-tuning 82.3 (README of bytedance/ibot).
"""

task = "joint"
scale = "paper"
epochs = 800
batch = 1024
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    views=dict(narrow=10, narrow_size=96, wide_scale=(0.25, 1.0), narrow_scale=(0.05, 0.25)),
)
model = dict(
    encoder=dict(size="vit_small", patch=16, image_size=224, positions="learned", antialias=False, drop_path=0.1, init="dino")
)
objective = dict(name="distill", out=8192, patches="masked", fixed_norm=False, warmup_temperature=0.04, teacher_temperature=0.07, warmup_epochs=30)
mask = dict(name="block", ratio=0.3, spread=0.2, share=0.5)
optim = dict(algorithm=dict(name="adamw"), blr=5e-4, weight_decay=dict(start=0.04, end=0.4, epochs="100%"), clip_norm=dict(each=3.0))
schedule = dict(warmup_epochs=10, min_lr=1e-6)
ema_decay = dict(start=0.996, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=64, workers=10)
