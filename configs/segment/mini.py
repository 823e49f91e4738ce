"""UperNet on the mini backbone and generated scenes (synthetic): ground and ten solids, 64 pixels.

Command:   python tools/seg_train.py configs/segment/mini.py --backbone runs/mini/backbone.safetensors --work-dir runs/mini_seg
           (without --backbone: the same encoder from random weights)
Cost:      2 or 3 minutes on two CPU cores. It shows that everything runs: from random weights so few steps find the ground (mIoU 7.1), not yet the solids.
Published: none; nobody else trains on these.
"""

scale = "mini"
epochs = 4
batch = 16
data = dict(
    train=dict(name="shapes", size=64, length=1024),
    val=dict(name="shapes", size=64, length=64, seed=1),
    size=64,
    scale=(256, 64),
    ratios=(0.75, 1.5),
    distort=False,
)
backbone = dict(encoder=dict(size=None, dim=128, depth=6, heads=4, patch=8, image_size=64))
protocol = dict(name="upernet", channels=32, dropout=0.0, drop_path=0.0, relative_positions="per_block")
inference = dict(mode="whole")
optim = dict(lr=2e-3, weight_decay=0.05, layer_decay=0.85, clip_norm=1.0)
schedule = dict(kind="linear", warmup_epochs=0.5, warmup_factor=1e-6)
precision = "float32"
run = dict(workers=1)
