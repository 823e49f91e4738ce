"""A linear layer on the last feature map of a frozen ViT-B/16, ADE20K.

It measures the features alone, in hours instead of a day.

Command:   python tools/seg_train.py configs/segment/linear_vit_base.py --backbone mae:mae_pretrain_vit_base.pth \
           --work-dir runs/seg_lin --set data.root=/data/ADEChallengeData2016
Cost:      40,000 iterations of 16 crops of 512 px, encoder forward pass and one layer only.
Published: none for MAE under this protocol.
"""

_base_ = "upernet_vit_base_160k.py"

epochs = 40_000 / (20_210 // 16)
protocol = dict(_delete_=True, name="linear")
optim = dict(lr=1e-3, weight_decay=1e-4, layer_decay=None)
evaluate_epochs = 8_000 / (20_210 // 16)
