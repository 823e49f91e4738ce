"""Fine-tuning of ViT-H/14 at 448 px, with resampled positions (MAE, table 3).

Command:   python tools/cls_train.py configs/classify/finetune_vit_huge_448.py \
           --backbone runs/mae_h/backbone.safetensors --work-dir runs/ft_h448 --set data.root=/data/imagenet
Cost:      50 epochs, 64 million images of 1024 patches, 4 times as many as at 224 px.
Published: 87.8 top-1 (table 3). The paper gives no separate recipe for this size; this is the 224-px one.
"""

_base_ = "finetune_vit_base.py"

epochs = 50
data = dict(size=448, shorter_side=1.0)
protocol = dict(drop_path=0.2)
run = dict(device_batch=8, checkpoint_activations=True)
