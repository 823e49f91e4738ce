"""Train what some targets need: a discrete VAE (`dvae`), or a basis of principal components (`pca`).

    python tools/tokenizer_train.py dvae configs/mini/tokenizer.py --work-dir runs/mini_tokenizer              minutes on a laptop
    python tools/tokenizer_train.py dvae configs/tokenizer/tokens_64px.py --work-dir runs/tok --set data.root=/data/tiny-imagenet
    python tools/tokenizer_train.py pca configs/pretrain/mae_small_64px.py --work-dir runs/pca --set data.root=/data/tiny-imagenet

`dvae` leaves tokenizer.safetensors, pictures (original | rebuilt from codes), results and checkpoints in its work dir; --resume goes on bit for bit.
`pca` takes a pretraining config and fits the components of its training crops' patches: basis.safetensors. Pretrain on them with
--set "target={'name':'token','tokenizer':'runs/tok/tokenizer.safetensors'}" or --set "target={'name':'pca','basis':'runs/pca/basis.safetensors'}".
"""

import argparse
import sys

from mae_transfer import cli
from mae_transfer.config import load
from mae_transfer.tasks import basis
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.tokenizer import TokenizerConfig, run


def pca(argv: list[str]) -> int:
    """Fit a basis; return the exit status."""
    parser = argparse.ArgumentParser(prog="tokenizer_train.py pca", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=cli.at_home, metavar="CONFIG", help="a pretraining config: its training crops, patch and statistics")
    parser.add_argument("--work-dir", required=True, type=cli.path, metavar="D", help="where basis.safetensors goes")
    parser.add_argument("--components", type=cli.count, default=96, help="how many (default: the paper's 96)")
    parser.add_argument("--images", type=cli.count, default=10_000, help="training crops to fit on (default 10000)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the config")
    args = parser.parse_args(argv)
    return cli.guarded(
        lambda: basis.fit(load(args.config, PretrainConfig, overrides=args.set), args.work_dir, components=args.components, images=args.images)
    )


def main(argv: list[str]) -> int:
    """Dispatch on the first argument; return the exit status."""
    if argv[:1] == ["dvae"]:
        return cli.train(TokenizerConfig, run, description=__doc__ or "", argv=argv[1:])
    if argv[:1] == ["pca"]:
        return pca(argv[1:])
    print(__doc__)
    return 0 if argv[:1] in ([], ["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
