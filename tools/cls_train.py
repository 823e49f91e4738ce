"""Classify images with a pretrained backbone: fine-tuning, partial fine-tuning, linear probing, k-NN.

  python tools/cls_train.py configs/classify/finetune_vit_base.py --work-dir runs/ft \\
      --backbone runs/mae_b/backbone.safetensors --set data.root=/data/imagenet
  python tools/cls_train.py configs/classify/partial.py --work-dir runs/part4 \\
      --backbone mae:mae_pretrain_vit_large.pth --set protocol.tune_blocks=4
  python tools/cls_train.py configs/classify/linear_probe.py --work-dir runs/lin \\
      --backbone moco-v3:vit-b-300ep.pth.tar
  python tools/cls_train.py configs/classify/knn.py --work-dir runs/knn \\
      --backbone timm:vit_base_patch16_224.dino
  python tools/cls_train.py configs/classify/finetune_vit_base.py \\
      --eval --checkpoint mae-finetuned:mae_finetuned_vit_base.pth
  python tools/cls_train.py configs/classify/robustness.py --set variants=... \\
      --eval --checkpoint mae-finetuned:mae_finetuned_vit_base.pth
  torchrun --nproc-per-node 8 tools/cls_train.py CONFIG --backbone REF --work-dir D --resume

D will hold checkpoints/ (training states), config.py (resolved), log.jsonl, curves.png,
tensorboard/ and results.jsonl (numbers). data.root is the folder of the data set:
train/<class>/*.jpg and val/<class>/*.jpg.
"""

import sys

from mae_transfer import cli

TASKS = "mae_transfer.tasks"

if __name__ == "__main__":
    classify, robustness = (f"{TASKS}.{name}" for name in ("classify", "robustness"))
    tasks = {
        "classify": cli.Task(
            f"{classify}:ClassifyConfig", f"{classify}:Classify.launch", f"{classify}:Classify.evaluate_checkpoint"
        ),
        "knn": cli.Task(f"{TASKS}.knn:KnnConfig", f"{TASKS}.evaluation:Evaluation.launch"),
        "robustness": cli.Task(f"{robustness}:RobustnessConfig", None, f"{robustness}:Robustness.evaluate_checkpoint"),
    }
    sys.exit(cli.transfer(tasks, description=__doc__))
