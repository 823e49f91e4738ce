"""Logistic regression of patches on frozen features, CamVid at half resolution.

Command:   python tools/seg_train.py configs/segment/camvid_logreg.py --backbone zoo:shapes64_norm_pixel \
           --work-dir runs/camvid_logreg --set data.root=/data/camvid
           (without --backbone: an encoder of random weights)
Cost:      about 70 s of a CPU core for half of the images and 20,000 patches (--set bank=20000).
Published: none at this scale.
"""

_base_ = "frozen_logreg.py"

scale = "small"
CLASSES = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
data = dict(train=dict(classes=CLASSES), val=dict(classes=CLASSES), size=(184, 240))
del CLASSES
backbone = dict(encoder=dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=96))
bank = 50_000
precision = "float32"
run = dict(workers=1)
