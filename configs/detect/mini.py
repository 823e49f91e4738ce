"""Mask R-CNN with narrow heads on generated scenes (synthetic).

Ten kinds of solids, with boxes and masks.

Command:   python tools/det_train.py configs/detect/mini.py --backbone runs/mini_mae/backbone.safetensors \
           --work-dir runs/mini_det
           (without --backbone: the same encoder from random weights)
Cost:      about 60 seconds on one CPU core.
Published: none for generated scenes.
"""

scale = "mini"
protocol = "mask_rcnn-mini"
epochs = 1
batch = 8
data = dict(
    train=dict(name="shapes", size=32, length=4096, objects=(1, 1)),
    val=dict(name="shapes", size=32, length=256, seed=1, objects=(1, 1)),
    augmentation=dict(name="large_scale_jitter", size=32, scale=(0.8, 1.25)),
    view=dict(name="shortest_edge", lengths=(32,), longest=32, flip=0.0),
    square=32,
)
backbone = dict(encoder=dict(size=None, dim=96, depth=4, heads=3, patch=4, image_size=32), changes=dict(positions="learned"))
adapter = dict(name="simple_fpn", channels=32)
heads = dict(norm="layer", box_convs=1, box_width=128, mask_convs=1, roi_batch=32, anchors=(4, 8, 16, 32, 64), pre_nms_topk=(200, 100), post_nms_topk=(60, 30), detections=10)
optim = dict(lr=1e-3, weight_decay=0.05, layer_decay=0.8, clip_norm=1.0)
schedule = dict(kind="cosine", warmup_epochs=0.125)
precision = "float32"
run = dict(workers=0, log_every=64, evaluation_batch=16)
