"""ViTDet on ViT-L/16.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vitdet_large_100ep.py \
           --backbone mae:mae_pretrain_vit_large.pth --set data.root=/data/coco --work-dir runs/vitdet_l
Cost:      184,375 steps of 64 images at 1024 pixels.
Published: box AP 55.5, mask AP 49.2 (detectron2, projects/ViTDet).
"""

_base_ = "./mask_rcnn_vitdet_base_100ep.py"
backbone = dict(changes=dict(global_blocks=(5, 11, 17, 23)))
optim = dict(layer_decay=0.8)
drop_path = 0.4
run = dict(device_batch=2)
