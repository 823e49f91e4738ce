"""MoBY, Swin-T, 300 epochs of ImageNet-1K (Xie et al., arXiv 2105.04553; configs/moby_swin_tiny.yaml).

Negatives come from two queues of 4096 keys. As in the public code, tables of relative positions have weight decay: its
list of exceptions does not reach the encoder. There, min_lr is scaled by batch / 512, too.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/moby_swin_tiny.py --work-dir runs/moby_t \
           --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images of 2 views.
Published: linear 75.3 (README of Transformer-SSL).
"""

task = "joint"
scale = "paper"
epochs = 300
batch = 512
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    views=dict(narrow=0, wide_scale=(0.08, 1.0), interpolation="bilinear"),
)
model = dict(timm="swin_tiny_patch4_window7_224", encoder=dict(image_size=224, drop_path=0.2))
objective = dict(name="contrast", temperature=0.2, queue=4096, scaled=False, bias=True, last_norm=False, projector_layers=2)
optim = dict(algorithm=dict(name="adamw"), blr=5e-4, weight_decay=0.05, clip_norm=5.0)
schedule = dict(warmup_epochs=5, warmup_factor=5e-4, min_lr=5e-6)
ema_decay = dict(start=0.99, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=64, workers=10)
