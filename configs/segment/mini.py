"""A linear head on the frozen mini backbone, on generated scenes (synthetic).

The classes are the ground and ten kinds of solids. UperNet needs many more steps to tell the solids apart
(configs/segment/camvid.py).

Command:   python tools/seg_train.py configs/segment/mini.py --backbone runs/mini_mae/backbone.safetensors \
           --work-dir runs/mini_seg
           (without --backbone: the same encoder from random weights)
Cost:      about 25 seconds on one CPU core.
Published: none for generated scenes.
"""

scale = "mini"
epochs = 4
batch = 16
data = dict(
    train=dict(name="shapes", size=32, length=2048, objects=(1, 1)),
    val=dict(name="shapes", size=32, length=256, seed=1, objects=(1, 1)),
    size=32,
    scale=(128, 32),
    ratios=(0.75, 1.5),
    distort=False,
)
backbone = dict(encoder=dict(size=None, dim=96, depth=4, heads=3, patch=4, image_size=32))
protocol = dict(name="linear", taps=(1, 3))
inference = dict(mode="whole")
optim = dict(lr=1e-2, weight_decay=0.05)
schedule = dict(kind="linear", warmup_epochs=0.5, warmup_factor=1e-6)
precision = "float32"
run = dict(workers=0, log_every=64)
