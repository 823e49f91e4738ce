"""Mask R-CNN on ViT-L/16 from random weights (Li et al., 2111.11429), 400 epochs.

Weights are initialised as in MIMDet.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vit_large_li2021_scratch_400ep.py \
           --set data.root=/data/coco --work-dir runs/det_l_scratch
Cost:      400 epochs, 737,500 steps of 64 images at 1024 pixels.
Published: box AP 50.7 (Li et al., text, which does not state the length).
"""

_base_ = "./mask_rcnn_vit_base_li2021_100ep.py"
protocol = "mask_rcnn-li2021-400ep"
epochs = 184375 / 1832 * 4
backbone = dict(encoder=dict(size="vit_large", patch=16, init="beit"), changes=dict(global_blocks=(5, 11, 17, 23)))
drop_path = 0.3
optim = dict(lr=1.6e-4, weight_decay=0.2)
run = dict(device_batch=2)
