"""Mask R-CNN on ViT-B/16 with the protocol of Li et al. (2111.11429), 25 epochs.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_25ep.py \
           --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco --work-dir runs/det_b25
Cost:      25 epochs, 46,094 steps of 64 images at 1024 pixels.
Published: box AP 48.1, mask AP 43.2 (Girshick, facebookresearch/mae#43).
"""

_base_ = "./mask_rcnn_vit_base_li2021_100ep.py"
protocol = "mask_rcnn-li2021-25ep"
epochs = 184375 / 1832 * 25 / 100
