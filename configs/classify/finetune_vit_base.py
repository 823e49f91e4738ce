"""Fine-tuning of ViT-B/16 on ImageNet-1K with the rates of MAE's table 9.

It pools by the mean of the patch tokens, as the PyTorch release does. The paper uses the class token (appendix A.1):
set protocol.pool=cls. The other fine-tuning configs extend this one.

Command:   python tools/cls_train.py configs/classify/finetune_vit_base.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/ft --set data.root=/data/imagenet
Cost:      100 epochs, 128 million images.
Published: 83.6 top-1 (table 3, MAE pretrained for 1600 epochs).
"""

scale = "paper"
epochs = 100
batch = 1024
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="rand_augment", policy="rand-m9-mstd0.5-inc1"),
)
protocol = dict(name="finetune", pool="mean", drop_path=0.1, mixup=0.8, cutmix=1.0, smoothing=0.1)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), blr=1e-3, weight_decay=0.05, layer_decay=0.75)
schedule = dict(kind="cosine", warmup_epochs=5)
precision = "bfloat16"
run = dict(device_batch=128, workers=10)
