"""ViTDet on ViT-H, with its 14-pixel patches resampled to 16.

Command:   torchrun --nproc-per-node 8 tools/det_train.py configs/detect/mask_rcnn_vitdet_huge_75ep.py \
           --backbone mae:mae_pretrain_vit_huge.pth --set data.root=/data/coco --work-dir runs/vitdet_h
Cost:      138,281 steps of 64 images at 1024 pixels.
Published: box AP 56.7, mask AP 50.2 (detectron2, projects/ViTDet).
"""

_base_ = "./mask_rcnn_vitdet_base_100ep.py"
epochs = 138281 / 1832
backbone = dict(changes=dict(global_blocks=(7, 15, 23, 31)))
optim = dict(layer_decay=0.9)
schedule = dict(milestones=(122916 / 1832, 133159 / 1832), warmup_epochs=187.5 / 1832)  # three quarters of ViT-B's and -L's
decay = "all"
drop_path = 0.5
run = dict(device_batch=1, checkpoint_activations=True)
