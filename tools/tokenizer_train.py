"""Train a discrete VAE (dvae) or fit principal components (pca) for the targets that need them.

  python tools/tokenizer_train.py dvae configs/mini/tokenizer.py --work-dir runs/mini_tokenizer
  python tools/tokenizer_train.py dvae configs/tokenizer/tokens_64px.py --work-dir runs/tok \\
      --set data.root=/data/tiny-imagenet
  python tools/tokenizer_train.py pca configs/pretrain/mae_small_64px.py --work-dir runs/pca \\
      --set data.root=/data/tiny-imagenet

dvae writes tokenizer.safetensors, pictures (original | rebuilt from codes), results and
checkpoints; --resume continues. pca reads a pretraining config, fits the principal
components of the patches in its training crops, and writes basis.safetensors. Then pretrain with
--set "target={'name':'token','tokenizer':'runs/tok/tokenizer.safetensors'}" or
--set "target={'name':'pca','basis':'runs/pca/basis.safetensors'}".
"""

import argparse
import sys

from mae_transfer import cli

TASK = "mae_transfer.tasks.tokenizer"


def pca(argv: list[str], *, prog: str) -> int:
    """Fit a basis; return the exit status."""
    parser = cli.training_parser(
        __doc__ or "", prog=prog, config="pretraining config that sets training crops, patch size and statistics"
    )
    parser.how.add_argument(
        "--components",
        type=cli.count,
        default=96,
        metavar="N",
        help="number of components (default: 96, as in the paper)",
    )
    parser.how.add_argument(
        "--images", type=cli.count, default=10_000, metavar="N", help="training crops to fit on (default: 10000)"
    )
    args = cli.parse(parser, argv)
    return cli.guarded(lambda: fit(args))


def fit(args: argparse.Namespace) -> None:
    from mae_transfer.config import load
    from mae_transfer.tasks import basis
    from mae_transfer.tasks.pretrain import PretrainConfig

    cfg = load(args.config, PretrainConfig, overrides=args.set)
    if args.show:
        cli.show(cfg, title=args.config)
    else:
        basis.fit(cfg, args.work_dir, components=args.components, images=args.images)


def main(argv: list[str]) -> int:
    """Run the command of the first argument; return the exit status."""
    parser = cli.Parser(description=__doc__)
    parser.what.add_argument("command", choices=("dvae", "pca"), help="command; each has its own --help")
    parser.information.add_argument("--list", action=cli.ListConfigs, nargs=0, help=cli.LIST)
    if argv[:1] == ["dvae"]:
        return cli.train(
            f"{TASK}:TokenizerConfig",
            f"{TASK}:Tokenizer.launch",
            description=__doc__ or "",
            prog=f"{parser.prog} dvae",
            argv=argv[1:],
        )
    if argv[:1] == ["pca"]:
        return pca(argv[1:], prog=f"{parser.prog} pca")
    parser.parse_args(argv)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
