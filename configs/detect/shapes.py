"""Mask R-CNN on 2,000 generated scenes: compares pretrained and random backbones cheaply.

The heads are narrow.

Command:   python tools/det_train.py configs/detect/shapes.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/shapes_det
Cost:      about 10 minutes on one CPU core.
Published: none for generated scenes.
"""

scale = "small"
protocol = "mask_rcnn-shapes"
epochs = 3
batch = 8
data = dict(
    train=dict(name="shapes", size=64, length=2000),
    val=dict(name="shapes", size=64, length=500, seed=1),
    augmentation=dict(name="large_scale_jitter", size=64, scale=(0.8, 1.25)),
    view=dict(name="shortest_edge", lengths=(64,), longest=64, flip=0.0),
    square=64,
)
backbone = dict(changes=dict(positions="learned"))
adapter = dict(name="simple_fpn", channels=64)
heads = dict(norm="layer", box_convs=2, box_width=256, mask_convs=2, roi_batch=64, anchors=(8, 16, 32, 64, 128), pre_nms_topk=(300, 200), post_nms_topk=(100, 50), detections=30)
optim = dict(lr=5e-4, weight_decay=0.05, layer_decay=0.8, clip_norm=1.0)
schedule = dict(kind="cosine", warmup_epochs=0.25)
precision = "float32"
run = dict(workers=1, evaluation_batch=16)
