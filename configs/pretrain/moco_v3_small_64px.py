"""A small MoCo v3 for 64-px images, for a CPU or any GPU.

The data use ImageNet's folder layout, for instance Tiny-ImageNet. The other images of the batch are the negatives, so
the batch is larger than DINO's and is not split (run.device_batch). With objective.queue=4096 it can be.

Command:   python tools/pretrain.py configs/pretrain/moco_v3_small_64px.py --work-dir runs/tiny_moco \
           --set data.root=/data/tinyimagenet \
           --set monitor.data.root=/data/tinyimagenet --set monitor.every_epochs=5
Cost:      two 64-px views, for student and teacher; `--estimate` times 20 steps.
Published: none at this scale.
"""

task = "joint"
scale = "small"
epochs = 50
batch = 256
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=64,
    views=dict(narrow=0, wide_scale=(0.2, 1.0)),
)
model = dict(
    encoder=dict(size=None, dim=192, depth=6, heads=3, patch=8, image_size=64, init="vit"),
    freeze_stem=True,
)
objective = dict(name="contrast", hidden=1024, out=256, temperature=0.2)
optim = dict(algorithm=dict(name="adamw"), lr=1e-3, weight_decay=0.1)
schedule = dict(warmup_epochs="10%")
ema_decay = dict(start=0.99, end=1.0, epochs="100%")
precision = "bfloat16"
evaluate_epochs = 5
evaluate_images = 1024
run = dict(workers=1, log_every=20)
