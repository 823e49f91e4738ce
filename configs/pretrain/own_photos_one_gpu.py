"""MAE, ViT-B/16, on your own images, for one 24 GB GPU; labels are not used.

DIR holds train/ and val/, class folders, or images at any depth. Without val/ a fixed 2 % (at most 2,048) is held out
for the evaluation loss. With fewer than 100,000 images, try starting from released weights (not measured):
--set start=mae-full:mae_pretrain_vit_base_full.pth

Command:   python tools/pretrain.py configs/pretrain/own_photos_one_gpu.py --work-dir runs/own_mae --set data.root=DIR
Cost:      400 epochs of 50,000 images are 20 million crops of 224 px; --estimate prints this
           machine's hours.
Published: none.
"""

_base_ = "mae_vit_base_16_800e.py"

epochs = 400
batch = 1024
data = dict(train=dict(name="photos", split="train"), val=dict(name="photos", split="val"))
schedule = dict(warmup_epochs="5%")
evaluate_epochs = 20
run = dict(device_batch=256, workers=8, compile=True, checkpoint_activations=True)
