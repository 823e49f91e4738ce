"""Segment images with a pretrained backbone: UperNet with everything training, or a linear head on the frozen encoder.

    python tools/seg_train.py configs/segment/mini.py --work-dir runs/seg                                 generated scenes, on a CPU, minutes
    python tools/seg_train.py configs/segment/upernet_vit_base_160k.py --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/ade --work-dir D
    python tools/seg_train.py configs/segment/upernet_beit_base_160k.py --backbone beit:beit_base_pt22k.pth --set data.root=/data/ade --work-dir D
    python tools/seg_train.py CONFIG --eval --checkpoint D/checkpoints/step_00160000.pt --multi-scale --visualize 20 --work-dir D_ms
    torchrun --nproc-per-node 8 tools/seg_train.py CONFIG --backbone REF --work-dir D --resume            eight GPUs, continued

D ends with checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png, tensorboard/, segmentations/ (image | truth | prediction) and
results.jsonl (mIoU, mAcc, aAcc). A data set lies as ADE20K does: images/{training,validation}/*.jpg, annotations/{training,validation}/*.png.
"""

import sys

from mae_transfer import cli
from mae_transfer.tasks import segment

TASKS = {"segment": cli.Task(segment.SegmentConfig, segment.run, segment.evaluate_checkpoint)}

SWITCHES = {"multi-scale": cli.Switch(segment.MULTI_SCALE, "average over the published scales, 0.5 to 1.75, and mirror images")}

if __name__ == "__main__":
    sys.exit(cli.transfer(TASKS, description=__doc__, draws=True, switches=SWITCHES))
