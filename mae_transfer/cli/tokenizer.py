"""Train a discrete VAE (dvae) or fit principal components (pca) for the targets that need them.

  python tools/tokenizer_train.py dvae configs/mini/tokenizer.py --work-dir runs/mini_tokenizer
  python tools/tokenizer_train.py dvae configs/tokenizer/tokens_64px.py --work-dir runs/tok \\
      --set data.root=/data/tinyimagenet
  python tools/tokenizer_train.py pca configs/pretrain/mae_small_64px.py --work-dir runs/pca \\
      --set data.root=/data/tinyimagenet

dvae writes tokenizer.safetensors, pictures (original | rebuilt from codes), results and
checkpoints; --resume continues. pca reads a pretraining config, fits the principal
components of the patches in its training crops, and writes basis.safetensors. Then pretrain with
--set "target={'name':'token','tokenizer':'runs/tok/tokenizer.safetensors'}" or
--set "target={'name':'pca','basis':'runs/pca/basis.safetensors'}".
"""

from __future__ import annotations

import argparse

from mae_transfer.cli.parser import LIST, ListConfigs, Parser, check_work_dir, count
from mae_transfer.cli.training import add_config_options, add_run_options, overrides


def add_options(parser: Parser) -> None:
    """Add the options of both commands."""
    parser.information.add_argument("--list", action=ListConfigs, nargs=0, help=LIST)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="Commands")
    dvae = commands.add_parser("dvae", help="train a discrete VAE", description=__doc__)
    add_config_options(dvae)
    add_run_options(dvae)
    pca = commands.add_parser("pca", help="fit principal components", description=__doc__)
    add_config_options(pca, "pretraining config that sets training crops, patch size and statistics")
    components = "number of components (default: 96, as in the paper)"
    images = "training crops to fit on (default: 10000)"
    pca.how.add_argument("--components", type=count, default=96, metavar="N", help=components)
    pca.how.add_argument("--images", type=count, default=10_000, metavar="N", help=images)


def run(args: argparse.Namespace) -> None:
    """Train a discrete VAE, or fit principal components."""
    check_work_dir(args)
    from mae_transfer.cli.showing import show
    from mae_transfer.config import load
    from mae_transfer.tasks import basis
    from mae_transfer.tasks.pretrain import PretrainConfig
    from mae_transfer.tasks.tokenizer import Tokenizer, TokenizerConfig

    cfg: PretrainConfig | TokenizerConfig
    if args.command == "pca":
        cfg = load(args.config, PretrainConfig, overrides=args.set)
    else:
        cfg = load(args.config, TokenizerConfig, overrides=overrides(args), debug=args.debug)
    if args.show:
        show(cfg, title=str(args.config))
    elif isinstance(cfg, PretrainConfig):
        basis.fit(cfg, args.work_dir, components=args.components, images=args.images)
    else:
        Tokenizer.launch(cfg, args.work_dir, resume=args.resume)
