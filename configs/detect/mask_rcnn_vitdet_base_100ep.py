"""ViTDet: Mask R-CNN on the simple pyramid of ViT-B/16 (Li et al., arXiv 2203.16527). Not MAE's table 4.

Windows of 14 with four global blocks, decomposed relative positions, layer norm in pyramid and heads, layer decay; the
rate drops at 89 and 96 % of the steps. The larger sizes extend this config.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vitdet_base_100ep.py \
           --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco --work-dir runs/vitdet_b
Cost:      184,375 steps of 64 images at 1024 pixels.
Published: box AP 51.6, mask AP 45.9 (detectron2, projects/ViTDet; seeds differ by 0.10); 51.2 and 45.5 in the paper's
           ablation.
"""

scale = "paper"
protocol = "mask_rcnn-vitdet"
epochs = 184375 / 1832  # steps published / steps per epoch: 117,266 images with objects, 64 in a batch
batch = 64
data = dict(
    train=dict(name="coco", split="train2017", skip_empty=True),
    val=dict(name="coco", split="val2017"),
    augmentation=dict(name="large_scale_jitter", size=1024, scale=(0.1, 2.0)),
    view=dict(name="shortest_edge", lengths=(1024,), longest=1024, flip=0.0),
    square=1024,
)
backbone = dict(
    changes=dict(windows=14, global_blocks=(2, 5, 8, 11), relative_positions="decomposed", positions="learned", antialias=False, patch=16)
)
adapter = dict(name="simple_fpn", channels=256)
heads = dict(norm="layer")
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=1e-4, weight_decay=0.1, layer_decay=0.7)
schedule = dict(kind="constant", milestones=(163889 / 1832, 177546 / 1832), gamma=0.1, warmup_epochs=250 / 1832, warmup_factor=0.001)
decay = "biases"
drop_path = 0.1
precision = "bfloat16"
run = dict(device_batch=8, workers=8, evaluation_batch=8)
