"""Fine-tuning of a small ViT on 64-px images.

The data use ImageNet's folder layout, for instance Tiny-ImageNet. The other small configs extend it.

Command:   python tools/cls_train.py configs/classify/small_finetune.py --backbone runs/tiny/backbone.safetensors \
           --work-dir runs/tiny_ft --set data.root=/data/tinyimagenet
Cost:      20,000 images x 20 epochs: minutes on a GPU, a quarter of an hour on two CPU cores.
Published: none at this scale.
"""

scale = "small"
epochs = 20
batch = 128
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=64,
    augmentation=dict(name="random_crop", scale=(0.35, 1.0)),
)
protocol = dict(name="finetune", pool="mean", drop_path=0.1, mixup=0.0, cutmix=1.0, smoothing=0.1)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=1e-3, weight_decay=0.05, layer_decay=0.75)
schedule = dict(warmup_epochs="10%")
precision = "bfloat16"
run = dict(workers=1)
