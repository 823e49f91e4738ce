"""Mask R-CNN on ViT-B/16 from random weights (Li et al., 2111.11429), 400 epochs.

Weights are initialised as in MIMDet.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_scratch_400ep.py \
           --set data.root=/data/coco --work-dir runs/det_b_scratch
Cost:      400 epochs, 737,500 steps of 64 images at 1024 pixels.
Published: none for this schedule; box AP 48.9 after 200 epochs (Li et al., section 4.2).
"""

_base_ = "./mask_rcnn_vit_base_li2021_100ep.py"
protocol = "mask_rcnn-li2021-400ep"
epochs = 184375 / 1832 * 4
backbone = dict(encoder=dict(size="vit_base", patch=16, init="beit"))
optim = dict(lr=1.6e-4, weight_decay=0.2)
