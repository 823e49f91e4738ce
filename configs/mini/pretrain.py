"""A small MAE on generated scenes (synthetic), to see the whole way from a fresh clone in a few minutes. No published number: nobody else trains on these.

Command:   python tools/pretrain.py configs/mini/pretrain.py --work-dir runs/mini_mae          (shortened, it is a part of `make mini`)
Cost:      minutes on two CPU cores, 1 GB.
Published: none; the loss should fall and reconstructions/ should show the scenes.
"""

scale = "mini"
epochs = 20
batch = 128
data = dict(
    train=dict(name="shapes", size=64, length=4096),
    val=dict(name="shapes", size=64, length=256, seed=1),
    size=64,
    augmentation=dict(name="random_crop", scale=(0.5, 1.0)),
)
model = dict(encoder=dict(size=None, dim=128, depth=6, heads=4, patch=8, image_size=64), decoder=dict(depth=2, dim=96, heads=3))
mask = dict(name="random", ratio=0.75)
target = dict(name="norm_pixel")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.95)), lr=2e-3, weight_decay=0.05)
schedule = dict(warmup_epochs=2)
precision = "float32"
evaluate_epochs = 5
run = dict(workers=1, log_every=20)
