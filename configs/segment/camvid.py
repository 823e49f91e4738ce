"""UperNet on CamVid at half resolution, for a CPU or any GPU.

CamVid has 367 training images of streets and 11 classes. The encoder is that of mae_small_64px.py, made for 64-px
images.

Command:   python tools/seg_train.py configs/segment/camvid.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/camvid --set data.root=/data/camvid
           (without --backbone: the same encoder from random weights)
Cost:      20 epochs, 7,040 crops of 96 pixels (docs/results/segment.md has the time on a CPU).
Published: none at this scale.
"""

scale = "small"
epochs = 20
batch = 16
CLASSES = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
data = dict(
    train=dict(name="ade", split="training", classes=CLASSES),
    val=dict(name="ade", split="validation", classes=CLASSES),
    size=96,
    scale=(240, 180),
)
del CLASSES
backbone = dict(encoder=dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=96))
protocol = dict(name="upernet", taps=(1, 2, 3, 5), channels=48, drop_path=0.1, relative_positions="per_block", positions="learned")
inference = dict(mode="slide", stride=64)
optim = dict(lr=1e-3, weight_decay=0.05, layer_decay=0.75)
schedule = dict(kind="linear", warmup_epochs="10%", warmup_factor=1e-6)
precision = "float32"
evaluate_epochs = 10
run = dict(workers=1, evaluation_batch=8)
