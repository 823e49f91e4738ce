"""Mask R-CNN with narrow heads on generated scenes (synthetic): ten kinds of solids with boxes and masks.

Command:   python tools/det_train.py configs/detect/mini.py --work-dir runs/det
Cost:      a few minutes on two CPU cores.
Published: none; nobody else trains on these.
"""

scale = "mini"
protocol = "mask_rcnn-mini"
epochs = 8
batch = 8
data = dict(
    train=dict(name="shapes", size=96, length=512),
    val=dict(name="shapes", size=96, length=64, seed=1),
    augmentation=dict(name="large_scale_jitter", size=96, scale=(0.8, 1.25)),
    view=dict(name="shortest_edge", lengths=(96,), longest=96, flip=0.0),
    square=96,
)
backbone = dict(encoder=dict(size=None, dim=128, depth=4, heads=4, patch=8, image_size=96), changes=dict(windows=6, global_blocks=(1, 3), positions="learned"))
adapter = dict(name="simple_fpn", channels=64)
heads = dict(norm="layer", box_convs=2, box_width=256, mask_convs=2, roi_batch=64, anchors=(8, 16, 32, 64, 128), post_nms_topk=(300, 100))
optim = dict(lr=5e-4, weight_decay=0.05, layer_decay=0.9, clip_norm=1.0)
schedule = dict(kind="cosine", warmup_epochs=0.5)
precision = "float32"
run = dict(workers=1, evaluation_batch=16)
