"""Pretrain a backbone: a masked autoencoder, or by joint embedding (DINO, iBOT, MoCo v3, MoBY, EsViT).

  python tools/pretrain.py configs/mini/pretrain.py --work-dir runs/mini_mae      (minutes, CPU)
  python tools/pretrain.py configs/pretrain/mae_vit_base_16_1600e.py --work-dir runs/mae_b \\
      --set data.root=/data/imagenet
  torchrun --nproc-per-node 8 tools/pretrain.py CONFIG --work-dir D --resume     (8 GPUs, continued)
  python tools/pretrain.py configs/pretrain/dino_vit_small.py --work-dir runs/dino_s \\
      --set data.root=/data/imagenet
  python tools/pretrain.py configs/ablations/table1a.py --row all --mini --work-dir runs/table1a

D will hold checkpoints/ (training states), backbone.safetensors (the encoder, for the transfer
tasks), config.py (resolved), log.jsonl and tensorboard/ (curves), results.jsonl (numbers) and
reconstructions/ (pictures). SIGTERM and Ctrl-C save and stop; --resume continues. Your own images:
configs/pretrain/own_photos_one_gpu.py and docs/own_data.md.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from mae_transfer.cli.parser import Parser, check_work_dir
from mae_transfer.cli.training import CONFIG, add_config_options, add_run_options, overrides, task_of

if TYPE_CHECKING:
    from mae_transfer.ablations import AblationRun


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    row = "ablation: name of a row of its table, or all (each in a folder of D)"
    add_config_options(parser, f"{CONFIG}; an ablation needs --row")
    parser.what.add_argument("--row", metavar="ROW", help=row)
    parser.what.add_argument("--mini", action="store_true", help="ablation: at a laptop's scale instead of the paper's")
    add_run_options(parser)


def run(args: argparse.Namespace) -> None:
    """Pretrain with a config, or with one or all rows of an ablation, one after the other."""
    check_work_dir(args)
    from mae_transfer.cli.showing import show
    from mae_transfer.config import load
    from mae_transfer.tasks.entries import PRETRAIN

    points = rows(args)
    tasks = [task_of(point.config, PRETRAIN)[1] for point in points]
    configs = [
        load(point.config, schema, changes=point.changes, overrides=overrides(args), debug=args.debug)
        for point, (schema, *_) in zip(points, tasks, strict=True)
    ]  # every row is checked before the first one starts
    for point, cfg, (_, launch, _) in zip(points, configs, tasks, strict=True):
        if args.show:
            show(cfg, title=f"{args.config}, row {point.row!r}" if point.row else str(args.config))
            continue
        folder = args.work_dir / point.folder if args.row == "all" else args.work_dir
        if not launch(cfg, folder, resume=args.resume) and not args.estimate:
            break  # a signal stopped the run; its state is saved


def rows(args: argparse.Namespace) -> list[AblationRun]:
    """Return the rows of an ablation that are to run; a config of one run is a row without a name."""
    from mae_transfer.ablations import AblationRun, is_grid, points

    if not is_grid(args.config):
        if args.row or args.mini:
            raise ValueError(f"{args.config} is one run, not an ablation: remove --row and --mini")
        return [AblationRun("", args.config, {})]
    found = points(args.config, "mini" if args.mini else "paper", args.row or "")
    if len(found) > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "--row all runs all rows in one process and does not work with torchrun: start each row by its name"
        )
    return found
