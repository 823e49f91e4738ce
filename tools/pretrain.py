"""Pretrain a masked autoencoder.

    python tools/pretrain.py configs/mini/pretrain.py --work-dir runs/mini                                   a few minutes on a laptop
    python tools/pretrain.py configs/pretrain/mae_vit_base_16_1600e.py --work-dir runs/mae_b --set data.root=/data/imagenet
    torchrun --nproc-per-node 8 tools/pretrain.py CONFIG --work-dir D --resume                               eight GPUs, continued
    python tools/pretrain.py configs/ablations/table1a.py --row all --mini --work-dir runs/table1a           the paper's ablations, small

D ends with checkpoints/ (training states), backbone.safetensors (the encoder, for the transfer tasks), config.py (resolved), log.jsonl and
tensorboard/ (curves), results.jsonl (numbers) and reconstructions/ (pictures). SIGTERM and Ctrl-C save and end; --resume goes on bit for bit.
"""

import sys

from mae_transfer import cli
from mae_transfer.tasks.pretrain import PretrainConfig, run

if __name__ == "__main__":
    sys.exit(cli.pretrain(PretrainConfig, run, description=__doc__))
