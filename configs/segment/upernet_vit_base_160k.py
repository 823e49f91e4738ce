"""UperNet with an MAE ViT-B/16 on ADE20K.

This recipe reproduced the result in public (mae_segmentation). Its 160,000 iterations are 126.7 epochs; MAE's appendix
A.4 says 100 epochs and gives no rates. The other recipes extend this config.

Command:   python tools/seg_train.py configs/segment/upernet_vit_base_160k.py --backbone mae:mae_pretrain_vit_base.pth \
           --work-dir runs/seg_b --set data.root=/data/ADEChallengeData2016
Cost:      160,000 iterations of 16 crops of 512 px: 26.5 hours on 8 RTX 3090, 21 GB each (mae_segmentation's own
           figure).
Published: 48.1 mIoU (MAE, table 5); 48.15 mIoU, 58.99 mAcc, 83.05 aAcc (README of implus/mae_segmentation); 48.13, with
           scales 48.70 (mmsegmentation).
"""

scale = "paper"
batch = 16
epochs = 160_000 / (20_210 // 16)  # iterations over steps per epoch
data = dict(train=dict(name="ade", split="training"), val=dict(name="ade", split="validation"), size=512, scale=(2048, 512))
protocol = dict(
    name="upernet",
    taps=(3, 5, 7, 11),
    drop_path=0.1,
    relative_positions="per_block",
    positions="learned",
    layer_scale=1.0,
    decays="published",
)
inference = dict(mode="slide", stride=341)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=1e-4, weight_decay=0.05, layer_decay=0.65)
schedule = dict(kind="linear", warmup_epochs=1_500 / (20_210 // 16), warmup_factor=1e-6)
precision = "bfloat16"
evaluate_epochs = 16_000 / (20_210 // 16)
run = dict(workers=4, evaluation_batch=8)
