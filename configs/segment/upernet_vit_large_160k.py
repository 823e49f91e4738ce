"""UperNet with an MAE ViT-L/16 on ADE20K: the public recipe of ViT-B with the taps of ViT-L.

Command:   torchrun --nproc-per-node 8 tools/seg_train.py configs/segment/upernet_vit_large_160k.py \
           --backbone mae:mae_pretrain_vit_large.pth --work-dir runs/seg_l --set data.root=/data/ADEChallengeData2016
Cost:      160,000 iterations of 16 crops of 512 px, about 3 times those of ViT-B.
Published: 53.6 mIoU (MAE, table 5; its rates were searched for each entry and not published).
"""

_base_ = "upernet_vit_base_160k.py"

protocol = dict(taps=(7, 11, 15, 23))
run = dict(checkpoint_activations=True)
