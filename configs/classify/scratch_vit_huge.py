"""ViT-H/14 from scratch on ImageNet-1K (MAE, table 11): the baseline for pretraining.

Command:   python tools/cls_train.py configs/classify/scratch_vit_huge.py --work-dir runs/scratch_huge \
           --set data.root=/data/imagenet
Cost:      200 epochs, 256 million images.
Published: 83.1 top-1 (table 3).
"""

_base_ = "scratch_vit_base.py"

epochs = 200
backbone = dict(encoder=dict(size="vit_huge", patch=14))
protocol = dict(drop_path=0.2)
run = dict(device_batch=32)
