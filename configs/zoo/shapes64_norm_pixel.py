"""The MAE `zoo:shapes64_norm_pixel`: normalised pixels, scenes of 1 to 4 solids (synthetic data).

Command:   python tools/pretrain.py configs/zoo/shapes64_norm_pixel.py --work-dir runs/zoo_norm_pixel
Cost:      about 8 minutes on one CPU core.
Published: none.
"""

scale = "small"
epochs = 6
batch = 64
data = dict(
    train=dict(name="shapes", size=64, length=16000, objects=(1, 4)),
    val=dict(name="shapes", size=64, length=512, seed=1, objects=(1, 4)),
    size=64,
    augmentation=dict(name="random_crop", scale=(0.5, 1.0)),
)
model = dict(encoder=dict(size=None, dim=192, depth=5, heads=3, patch=8, image_size=64), decoder=dict(depth=1, dim=96, heads=3))
mask = dict(name="random", ratio=0.75)
target = dict(name="norm_pixel")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.95)), lr=1.5e-3, weight_decay=0.05)
schedule = dict(warmup_epochs="5%")
precision = "float32"
evaluate_epochs = 1
evaluate_images = 512
run = dict(workers=0, log_every=50)
