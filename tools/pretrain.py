"""Pretrain a masked autoencoder.

  python tools/pretrain.py configs/mini/pretrain.py --work-dir runs/mini          (minutes, CPU)
  python tools/pretrain.py configs/pretrain/mae_vit_base_16_1600e.py --work-dir runs/mae_b \\
      --set data.root=/data/imagenet
  torchrun --nproc-per-node 8 tools/pretrain.py CONFIG --work-dir D --resume     (8 GPUs, continued)
  python tools/pretrain.py configs/ablations/table1a.py --row all --mini --work-dir runs/table1a

D will hold checkpoints/ (training states), backbone.safetensors (the encoder, for the transfer
tasks), config.py (resolved), log.jsonl and tensorboard/ (curves), results.jsonl (numbers) and
reconstructions/ (pictures). SIGTERM and Ctrl-C save and stop; --resume continues. Your own images:
configs/pretrain/own_photos_one_gpu.py and docs/own_data.md.
"""

import sys

from mae_transfer import cli

TASK = "mae_transfer.tasks.pretrain"

if __name__ == "__main__":
    sys.exit(cli.pretrain(f"{TASK}:PretrainConfig", f"{TASK}:Pretrain.launch", description=__doc__))
