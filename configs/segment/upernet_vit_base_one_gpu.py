"""UperNet with an MAE ViT-B/16 on ADE20K for one GPU of 24 GB: the public recipe, its batch of 16 by accumulation, activations recomputed.

Command:   python tools/seg_train.py configs/segment/upernet_vit_base_one_gpu.py --backbone mae:mae_pretrain_vit_base.pth --work-dir runs/seg_b --set data.root=/data/ADEChallengeData2016
Cost:      160,000 iterations of 16 crops of 512 px; run.device_batch is what memory depends on (8 GPUs of the published run take 2 crops each).
Published: none for batch norms over 4 crops; over 16: 48.1 mIoU (MAE, table 5).
"""

_base_ = "upernet_vit_base_160k.py"

schedule = dict(warmup_epochs="0.9375%")
run = dict(device_batch=4, workers=8, checkpoint_activations=True, evaluation_batch=4)
