"""Partial fine-tuning on ImageNet-1K (MAE, A.1 and figure 9).

It trains the last blocks with the fine-tuning recipe. The paper leaves some settings open. Here the final norm trains,
layer decay is kept, and frozen blocks have no drop path. The options tune_norm, frozen_drop_path and optim.layer_decay
change this. Pooling is the mean of the patches; the paper fine-tunes with the class token (A.1; pool=cls). tune_blocks is a number, "half" or "all".

Command:   python tools/cls_train.py configs/classify/partial.py --backbone mae:mae_pretrain_vit_large.pth \
           --set protocol.tune_blocks=4 --work-dir runs/part4 --set data.root=/data/imagenet
Cost:      50 epochs, 64 million images; the paper takes the best of 50, 100 and 200 epochs per number of blocks
           (fewer blocks need longer training).
Published: 0 / half / 1 / 2 / 4 / 6 / 12 / 18 / 24 blocks of ViT-L: 73.5 / 79.1 / 81.0 / 83.1 / 84.2 / 84.4 / 84.6 /
           84.7 / 84.9 top-1 (figure 9).
"""

_base_ = "finetune_vit_base.py"

epochs = 50
protocol = dict(name="partial", tune_blocks=4)
