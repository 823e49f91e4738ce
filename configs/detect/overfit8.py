"""Overfits 8 images of a COCO-format set with a small Mask R-CNN (sanity check).

The images are the first 8 of the training set; weights are random at the start.

Command:   python tools/det_train.py configs/detect/overfit8.py --work-dir runs/overfit8 --set data.root=/data/coco
Cost:      within 30 minutes on two CPU cores.
Published: none; AP50 on the same 8 images should exceed 50 for boxes and masks.
"""

scale = "mini"
protocol = "mask_rcnn-overfit"
epochs = 300
batch = 4
data = dict(
    train=dict(name="coco", split="train2017", skip_empty=True, first=8),
    val=dict(name="coco", split="train2017", skip_empty=True, first=8),
    augmentation=dict(name="shortest_edge", lengths=(320,), longest=320, flip=0.0),
    view=dict(name="shortest_edge", lengths=(320,), longest=320, flip=0.0),
    square=320,
)
backbone = dict(encoder=dict(size="vit_tiny", depth=6, patch=16, image_size=320), changes=dict(positions="learned"))
adapter = dict(name="simple_fpn", channels=64)
heads = dict(box_convs=2, box_width=256, mask_convs=2, roi_batch=64, post_nms_topk=(500, 300))
optim = dict(lr=5e-4, weight_decay=0.0, clip_norm=1.0)
schedule = dict(kind="cosine", warmup_epochs=5)
evaluate_epochs = 75
precision = "float32"
run = dict(workers=1, log_every=20, evaluation_batch=8)
