"""EsViT, Swin-T, 300 epochs of ImageNet-1K (Li et al., arXiv 2106.09785; window 7).

The features of the image and its patches have two heads of 65536 prototypes.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/esvit_swin_tiny.py --work-dir runs/esvit_t \
           --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images of 10 views.
Published: linear 78.0, k-NN 75.7 (README of microsoft/esvit; its linear probe uses four stages).
"""

task = "joint"
scale = "paper"
epochs = 300
batch = 512
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    views=dict(narrow=8, narrow_size=96, wide_scale=(0.4, 1.0), narrow_scale=(0.05, 0.4)),
)
model = dict(timm="swin_tiny_patch4_window7_224", encoder=dict(image_size=224, drop_path=0.1))
objective = dict(
    name="distill", out=65536, patches="matched", shared=False, fixed_norm=False,
    warmup_temperature=0.04, teacher_temperature=0.07, warmup_epochs=30,
)
optim = dict(algorithm=dict(name="adamw"), blr=5e-4, weight_decay=dict(start=0.04, end=0.4, epochs="100%"), clip_norm=dict(each=3.0))
schedule = dict(warmup_epochs=10, min_lr=1e-6)
ema_decay = dict(start=0.996, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=32, workers=10)
