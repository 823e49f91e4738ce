"""A small MAE for 64-px images, for a CPU or any GPU.

The data use ImageNet's folder layout, for instance Tiny-ImageNet.

Command:   python tools/pretrain.py configs/pretrain/mae_small_64px.py --work-dir runs/tiny \
           --set data.root=/data/tinyimagenet
Cost:      25 of its 50 epochs took 68 minutes on one core of a busy CPU (docs/results/pretrain.md).
Published: none at this scale.
"""

scale = "small"
epochs = 50
batch = 128
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=64,
    augmentation=dict(name="random_crop", scale=(0.2, 1.0)),
)
model = dict(encoder=dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64), decoder=dict(depth=2, dim=96, heads=3))
mask = dict(name="random", ratio=0.75)
target = dict(name="norm_pixel")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.95)), lr=1e-3, weight_decay=0.05)
schedule = dict(warmup_epochs="10%")
precision = "bfloat16"
evaluate_epochs = 5
evaluate_images = 1024
run = dict(workers=1, log_every=20)
