"""Fine-tuning of the mini backbone on generated scenes (synthetic): the largest object's class of ten.

Command:   python tools/cls_train.py configs/classify/mini.py --backbone runs/mini_mae/backbone.safetensors --work-dir runs/mini_ft
Cost:      1 or 2 minutes on two CPU cores.
Published: none; nobody else trains on these.
"""

scale = "mini"
epochs = 10
batch = 128
data = dict(
    train=dict(name="shapes", size=64, length=2048),
    val=dict(name="shapes", size=64, length=256, seed=1),
    size=64,
    augmentation=dict(name="random_crop", scale=(0.7, 1.0)),
)
protocol = dict(name="finetune", pool="mean", drop_path=0.0, mixup=0.0, cutmix=0.0, smoothing=0.1)
optim = dict(lr=1e-3, weight_decay=0.05, layer_decay=0.75)
schedule = dict(warmup_epochs=1)
precision = "float32"
run = dict(workers=1)
