"""MAE, ViT-B/16, for one 24 GB GPU: 300 epochs at batch 1024.

The batch is accumulated, and activations are recomputed.

Command:   python tools/pretrain.py configs/pretrain/mae_vit_base_16_one_gpu.py --work-dir runs/mae_b_300e \
           --set data.root=/data/imagenet
Cost:      300 epochs are 384 million images; `tools/benchmark.py pretrain` measures your images/s.
           run.device_batch controls the memory.
Published: none for this batch; mmpretrain's ViT-B at 300 epochs and batch 4096: fine-tuning 83.1, linear probe 60.8
           (its README, configs/mae).
"""

_base_ = "mae_vit_base_16_800e.py"

epochs = 300
batch = 1024
schedule = dict(warmup_epochs="13.3%")
run = dict(device_batch=256, workers=8, compile=True, checkpoint_activations=True)
