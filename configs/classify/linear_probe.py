"""Linear probing on ImageNet-1K (MAE, table 10).

Batch norm without parameters, a linear layer, LARS, BYOL's crop.

Command:   python tools/cls_train.py configs/classify/linear_probe.py --backbone runs/mae_b/backbone.safetensors \
           --work-dir runs/lin --set data.root=/data/imagenet
Cost:      90 epochs, 115 million images, forward only (50 epochs are enough for ViT-L and -H).
Published: 68.0 ViT-B, 75.8 ViT-L, 76.6 ViT-H top-1 (table 12); 67.8, 76.0, 77.2 from the released weights.
"""

scale = "paper"
epochs = 90
batch = 16384
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=224,
    augmentation=dict(name="byol_crop", scale=(0.08, 1.0)),
)
protocol = dict(name="linear", rates=(1.0,), pools=("cls",))
optim = dict(algorithm=dict(name="lars", momentum=0.9, trust=0.001), blr=0.1, weight_decay=0.0)
schedule = dict(kind="cosine", warmup_epochs=10)
precision = "bfloat16"
run = dict(device_batch=512, workers=10)
