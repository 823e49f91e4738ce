"""Mask R-CNN on ViT-B/16 with the protocol of Li et al. (2111.11429), 50 epochs.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_base_li2021_50ep.py \
           --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco --work-dir runs/det_b50
Cost:      50 epochs, 92,188 steps of 64 images at 1024 pixels.
Published: box AP 50.1, mask AP 44.6 (Girshick, facebookresearch/mae#43).
"""

_base_ = "./mask_rcnn_vit_base_li2021_100ep.py"
protocol = "mask_rcnn-li2021-50ep"
epochs = 184375 / 1832 * 50 / 100
