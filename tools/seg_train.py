"""Segment images with a pretrained backbone: UperNet, or a linear head on the frozen encoder.

  python tools/seg_train.py configs/segment/mini.py --work-dir runs/seg     (generated scenes, CPU)
  python tools/seg_train.py configs/segment/upernet_vit_base_160k.py --work-dir D \\
      --backbone mae:mae_pretrain_vit_base.pth --set data.root=/data/ade
  python tools/seg_train.py configs/segment/upernet_beit_base_160k.py --work-dir D \\
      --backbone beit:beit_base_pt22k.pth --set data.root=/data/ade
  python tools/seg_train.py CONFIG --eval --checkpoint D/checkpoints/step_00160000.pt \\
      --multi-scale --visualize 20 --work-dir D_ms
  torchrun --nproc-per-node 8 tools/seg_train.py CONFIG --backbone REF --work-dir D --resume

D will hold checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png,
tensorboard/, segmentations/ (image | ground truth | prediction) and results.jsonl (mIoU, mAcc,
aAcc). Data use ADE20K's layout: images/{training,validation}/*.jpg and
annotations/{training,validation}/*.png.
"""

import sys

from mae_transfer import cli

TASK = "mae_transfer.tasks.segment"

if __name__ == "__main__":
    tasks = {
        "segment": cli.Task(f"{TASK}:SegmentConfig", f"{TASK}:Segment.launch", f"{TASK}:Segment.evaluate_checkpoint")
    }
    scales = cli.Switch(f"{TASK}:MULTI_SCALE", "average over the published scales, 0.5 to 1.75, and mirrored images")
    sys.exit(cli.transfer(tasks, description=__doc__, draws=True, switches={"multi-scale": scales}))
