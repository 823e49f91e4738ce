"""Fine-tuning of the mini backbone on generated scenes (synthetic): ten kinds of solids.

Command:   python tools/cls_train.py configs/classify/mini.py --backbone runs/mini_mae/backbone.safetensors \
           --work-dir runs/mini_ft
Cost:      about 60 seconds on one CPU core.
Published: none for generated scenes.
"""

scale = "mini"
epochs = 4
batch = 32
data = dict(
    train=dict(name="shapes", size=32, length=4096, objects=(1, 1)),
    val=dict(name="shapes", size=32, length=1000, seed=1, objects=(1, 1)),
    size=32,
    augmentation=dict(name="random_crop", scale=(0.7, 1.0)),
)
protocol = dict(name="finetune", pool="mean", head_std=0.02, drop_path=0.0, mixup=0.0, cutmix=0.0, smoothing=0.1)
optim = dict(lr=1e-3, weight_decay=0.05, layer_decay=0.75)
schedule = dict(warmup_epochs=0.5)
precision = "float32"
run = dict(workers=0, log_every=64)
