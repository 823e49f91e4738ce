"""A row of linear probes of a small ViT on 64-px images, on class token and patch mean.

The best probe on held-out images is reported.

Command:   python tools/cls_train.py configs/classify/small_linear.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/tiny_lin --set data.root=/data/tinyimagenet
Cost:      20,000 images x 20 epochs, forward only: minutes on two CPU cores.
Published: none at this scale.
"""

scale = "small"
epochs = 20
batch = 128
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=64,
    holdout_fraction=0.1,
    augmentation=dict(name="byol_crop", scale=(0.35, 1.0)),
)
protocol = dict(name="linear", rates=(0.3, 1.0, 3.0, 10.0), pools=("cls", "mean"))
optim = dict(algorithm=dict(name="lars"), blr=1.0, weight_decay=0.0)
schedule = dict(warmup_epochs="10%")
precision = "bfloat16"
run = dict(workers=1)
