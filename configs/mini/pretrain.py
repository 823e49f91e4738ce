"""A small MAE on generated scenes of one solid each, 32 pixels (synthetic data).

Command:   python tools/pretrain.py configs/mini/pretrain.py --work-dir runs/mini_mae          (a part of `make mini`)
Cost:      about 100 seconds on one CPU core, 1 GB.
Published: none for generated scenes. The pictures in reconstructions/ should show recognisable solids.
"""

scale = "mini"
epochs = 15
batch = 32
data = dict(
    train=dict(name="shapes", size=32, length=4096, objects=(1, 1)),
    val=dict(name="shapes", size=32, length=256, seed=1, objects=(1, 1)),
    size=32,
    augmentation=dict(name="random_crop", scale=(0.5, 1.0)),
)
model = dict(encoder=dict(size=None, dim=96, depth=4, heads=3, patch=4, image_size=32), decoder=dict(depth=1, dim=64, heads=2))
mask = dict(name="random", ratio=0.75)
target = dict(name="norm_pixel")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.95)), lr=2e-3, weight_decay=0.05)
schedule = dict(warmup_epochs=1)
precision = "float32"
run = dict(workers=0, log_every=64)
