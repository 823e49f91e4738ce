"""Mask R-CNN on ViT-L/16 with the protocol of Li et al. (2111.11429), 100 epochs.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_large_li2021_100ep.py \
           --backbone mae:mae_pretrain_vit_large.pth --set data.root=/data/coco --work-dir runs/det_l100
Cost:      100 epochs, 184,375 steps of 64 images at 1024 pixels.
Published: box AP 53.3, mask AP 47.2 (MAE, table 4).
"""

_base_ = "./mask_rcnn_vit_base_li2021_100ep.py"
backbone = dict(changes=dict(global_blocks=(5, 11, 17, 23)))
drop_path = 0.3
run = dict(device_batch=2)
