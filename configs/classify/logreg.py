"""Logistic regression on frozen features; C is chosen on held-out training images; few-shot with 1 to 10 images a class.

Command:   python tools/cls_train.py configs/classify/logreg.py --backbone timm:vit_base_patch16_224.dino \
           --work-dir runs/logreg --set data.root=/data/flowers
Cost:      one forward pass over all images, then 9 fits of L-BFGS, and 20 small ones for the few-shot accuracies.
Published: none.
"""

task = "logreg"
scale = "paper"
data = dict(train=dict(name="folder", split="train"), val=dict(name="folder", split="val"), size=224)
pool = "cls"
shots = (1, 2, 5, 10)
precision = "bfloat16"
run = dict(workers=10)
