"""Mask R-CNN on ViT-B/16 with the protocol of MAE's table 4 (Li et al., 2111.11429), 100 epochs.

Four taps of the encoder; windows of 14 with global tap blocks; zero-initialised relative-position bias tables (one
shared by the windowed blocks, one by the global blocks); batch norm in FPN and heads; large-scale jitter to 1024
pixels; no layer decay. An epoch is a pass over the images with objects; 184,375 steps were published. The other
schedules extend this config.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_100ep.py \
           --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco --work-dir runs/det_b
Cost:      184,375 steps of 64 images at 1024 pixels.
Published: box AP 50.3, mask AP 44.9 (MAE, table 4; with 25 / 50 / 100 epochs 48.1 / 50.1 / 50.3 and 43.2 / 44.6 / 44.9:
           facebookresearch/mae#43).
"""

scale = "paper"
protocol = "mask_rcnn-li2021"
epochs = 184375 / 1832  # steps published / steps per epoch: 117,266 images with objects, 64 in a batch
batch = 64
data = dict(
    train=dict(name="coco", split="train2017", skip_empty=True),
    val=dict(name="coco", split="val2017"),
    augmentation=dict(name="large_scale_jitter", size=1024, scale=(0.1, 2.0)),
    view=dict(name="shortest_edge", lengths=(1024,), longest=1024, flip=0.0),
    square=1024,
)
backbone = dict(changes=dict(windows=14, global_blocks=(2, 5, 8, 11), relative_positions="shared", positions="learned"))
adapter = dict(name="tap_fpn", norm="group", fpn=256, fpn_norm="batch", p6=True)
heads = dict(norm="batch")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=8e-5, weight_decay=0.1)
schedule = dict(kind="cosine", warmup_epochs=0.25)
drop_path = 0.1
precision = "bfloat16"
run = dict(device_batch=8, workers=8, evaluation_batch=8)
