"""MoCo v3, ViT-B/16, 300 epochs of ImageNet-1K (Chen et al., arXiv 2104.02057).

The negatives are the whole batch, so it is not split into micro-steps. Batch norms are synchronised over GPUs;
several processes on a CPU are refused, because each one's own statistics would tell its images apart.
As in the public code, all parameters have weight decay and crops are resized bilinearly.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/moco_v3_vit_base.py --work-dir runs/moco_b \
           --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images of 2 views; 8 devices hold 512 images each.
Published: linear 76.7, fine-tuning 83.2 (README of facebookresearch/moco-v3).
"""

task = "joint"
scale = "paper"
epochs = 300
batch = 4096
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    views=dict(narrow=0, wide_scale=(0.08, 1.0), interpolation="bilinear"),
)
model = dict(encoder=dict(size="vit_base", patch=16, image_size=224, init="moco-v3"), freeze_stem=True)
objective = dict(name="contrast", temperature=0.2)
decay = "all"
optim = dict(algorithm=dict(name="adamw"), blr=1.5e-4, weight_decay=0.1)
schedule = dict(warmup_epochs=40)
ema_decay = dict(start=0.99, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 20
run = dict(device_batch=512, workers=10)
