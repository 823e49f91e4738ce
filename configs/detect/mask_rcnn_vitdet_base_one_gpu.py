"""ViTDet on ViT-B/16 for one 24 GB GPU: a quarter of the batch and of the schedule.

The batch is accumulated. The rate scales with the square root of the batch. This recipe has no published numbers and
has not been run at full length.

Command:   python tools/det_train.py configs/detect/mask_rcnn_vitdet_base_one_gpu.py \
           --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/coco --work-dir runs/vitdet_one
Cost:      25 epochs, 183,225 steps of 16 images at 1024 pixels.
Published: none.
"""

_base_ = "./mask_rcnn_vitdet_base_100ep.py"
epochs = 25
batch = 16
optim = dict(lr=5e-5)
schedule = dict(milestones=("88%", "96%"), warmup_epochs="0.4%")
run = dict(device_batch=2, checkpoint_activations=True, evaluation_batch=2, workers=6)
