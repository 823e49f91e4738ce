"""Overfits 8 images of CamVid with a small UperNet (sanity check).

The images are the first 8, in ADE20K's layout; weights are random at the start.

Command:   python tools/seg_train.py configs/segment/overfit8.py --work-dir runs/overfit8 --set data.root=/data/camvid
Cost:      within 15 minutes on two CPU cores.
Published: none; mIoU on the same 8 images should exceed 70.
"""

scale = "mini"
epochs = 1800
batch = 8
CAMVID = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
data = dict(
    train=dict(name="ade", split="training", classes=CAMVID, first=8, allow_absent=True),
    val=dict(name="ade", split="training", classes=CAMVID, first=8, allow_absent=True),
    size=96,
    scale=(240, 180),
    ratios=(1.0, 1.0),
    largest_share=1.0,
    flip=0.0,
    distort=False,
)
del CAMVID
backbone = dict(encoder=dict(size=None, dim=96, depth=4, heads=3, patch=8, image_size=96))
protocol = dict(name="upernet", channels=32, auxiliary=0.0, dropout=0.0, drop_path=0.0, relative_positions="per_block", positions="learned")
inference = dict(mode="slide", stride=64)
optim = dict(lr=4e-3, weight_decay=0.0, clip_norm=1.0)
schedule = dict(kind="cosine", warmup_epochs=40, warmup_factor=1e-6)
precision = "float32"
evaluate_epochs = 600
run = dict(workers=1, log_every=50)
