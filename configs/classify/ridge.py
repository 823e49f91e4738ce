"""A ridge classifier on frozen ImageNet-1K features, in closed form; its penalty is chosen on held-out training images.

Command:   python tools/cls_train.py configs/classify/ridge.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/ridge --set data.root=/data/imagenet
Cost:      one forward pass over 1.33 million images; the features of ViT-B take 3.9 GB of device memory.
Published: none.
"""

task = "ridge"
scale = "paper"
data = dict(train=dict(name="folder", split="train"), val=dict(name="folder", split="val"), size=224)
pool = "cls"
precision = "bfloat16"
run = dict(workers=10)
