"""A small DINO for 64-px images, for a CPU or any GPU.

The data use ImageNet's folder layout, for instance Tiny-ImageNet. DINO's momentum of 0.996 is for batches of 1024
(help of main_dino.py: 0.9995 for 256); the head has 4096 prototypes.

Command:   python tools/pretrain.py configs/pretrain/dino_small_64px.py --work-dir runs/tiny_dino \
           --set data.root=/data/tinyimagenet \
           --set monitor.data.root=/data/tinyimagenet --set monitor.every_epochs=5
Cost:      2 x 64 and 4 x 32 px are 3 times the patches of one 64-px image, for student and teacher; `--estimate` times
           20 steps.
Published: none at this scale.
"""

task = "joint"
scale = "small"
epochs = 50
batch = 128
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=64,
    views=dict(narrow=4, narrow_size=32, wide_scale=(0.4, 1.0), narrow_scale=(0.05, 0.4)),
)
model = dict(
    encoder=dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64, positions="learned", antialias=False, drop_path=0.1),
)
objective = dict(name="distill", out=4096, hidden=1024, warmup_temperature=0.04, teacher_temperature=0.07, warmup_epochs=15)
optim = dict(algorithm=dict(name="adamw"), lr=1e-3, weight_decay=dict(start=0.04, end=0.4, epochs="100%"), clip_norm=dict(each=3.0))
schedule = dict(warmup_epochs="10%", min_lr=1e-6)
ema_decay = dict(start=0.9995, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 5
evaluate_images = 1024
run = dict(workers=1, log_every=20)
