"""iBOT, ViT-B/16, 400 epochs of ImageNet-1K (Zhou et al., arXiv 2111.07832): the released model.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/ibot_vit_base.py --work-dir runs/ibot_b \
           --set data.root=/data/imagenet
Cost:      400 epochs are 512 million images of 12 views.
Published: k-NN 77.1, linear 79.5, fine-tuning 84.0 (README of bytedance/ibot).
"""

_base_ = "ibot_vit_small.py"

epochs = 400
data = dict(views=dict(wide_scale=(0.32, 1.0), narrow_scale=(0.05, 0.32)))
model = dict(encoder=dict(size="vit_base"))
objective = dict(fixed_norm=True, freeze_epochs=3, warmup_epochs=50)
optim = dict(blr=7.5e-4, clip_norm=dict(each=0.3))
schedule = dict(min_lr=2e-6)
run = dict(device_batch=32)
