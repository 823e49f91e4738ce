"""Mask R-CNN on ViT-B/16 from random weights (Li et al., 2111.11429), 200 epochs.

Weights are initialised as in MIMDet.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_scratch_200ep.py \
           --set data.root=/data/coco --work-dir runs/det_b_scratch200
Cost:      200 epochs, 368,750 steps of 64 images at 1024 pixels.
Published: box AP 48.9 (Li et al., section 4.2).
"""

_base_ = "./mask_rcnn_vit_base_li2021_100ep.py"
protocol = "mask_rcnn-li2021-200ep"
epochs = 184375 / 1832 * 2
backbone = dict(encoder=dict(size="vit_base", patch=16, init="beit"))
optim = dict(lr=1.6e-4, weight_decay=0.2)
