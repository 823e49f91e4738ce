"""UperNet with a self-supervised BEiT ViT-B/16 on ADE20K.

Positions are relative only: one bias table per block, copied from BEiT's shared one.

Command:   python tools/seg_train.py configs/segment/upernet_beit_base_160k.py \
           --backbone beit:beit_base_patch16_224_pt22k.pth --work-dir runs/seg_beit \
           --set data.root=/data/ADEChallengeData2016
Cost:      160,000 iterations of 16 crops of 512 px, as configs/segment/upernet_vit_base_160k.py.
Published: 47.1 mIoU for a BEiT pretrained on ImageNet-1K (MAE, table 5). The command's weights were pretrained on
           ImageNet-22K; no number without intermediate fine-tuning is known. For weights fine-tuned on ImageNet use
           lr 3e-5, layer_decay 0.9 (BEiT).
"""

_base_ = "upernet_vit_base_160k.py"

protocol = dict(positions=None, layer_scale=None)
optim = dict(lr=7e-4)
