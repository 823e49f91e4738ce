"""Weighted k-NN on ImageNet-1K without training (DINO's protocol: cosine, temperature 0.07).

Command:   python tools/cls_train.py configs/classify/knn.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/knn --set data.root=/data/imagenet
Cost:      one forward pass over 1.33 million images; the features of ViT-B take 3.9 GB of device memory.
Published: iBOT 75.2 ViT-S, 77.1 ViT-B, 78.0 ViT-L (its README); lightly's MAE ViT-B after 100 epochs 11.2.
"""

task = "knn"
scale = "paper"
data = dict(train=dict(name="folder", split="train"), val=dict(name="folder", split="val"), size=224)
pool = "cls"
ks = (10, 20, 100, 200)
temperature = 0.07
precision = "bfloat16"
run = dict(workers=10)
