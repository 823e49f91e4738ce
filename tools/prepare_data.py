"""Download, check and write data sets.

  python tools/prepare_data.py coco --root /data/coco     (download, unpack, check; can be repeated)
  python tools/prepare_data.py check --root /data/mine --annotations labels.json --images photos
  python tools/prepare_data.py shapes --root data/shapes --format coco --train 2000 --val 500

check lists all defects of a data set. --help after a command shows its options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mae_transfer import cli

if TYPE_CHECKING:
    from mae_transfer.data.reports import Defect

PUBLIC = ("coco", "ade20k")
WRITERS = {"coco": "mae_transfer.data.dense_shapes:write_coco", "ade": "mae_transfer.data.dense_shapes:write_ade"}


def main() -> int:
    args = parser().parse_args()
    if args.command == "shapes":
        return cli.guarded(
            lambda: cli.named(WRITERS[args.format])(
                args.root, train=args.train, val=args.val, size=args.size, seed=args.seed
            )
        )
    return cli.guarded(lambda: check(args) if args.command == "check" else public(args))


def parser() -> cli.Parser:
    found = cli.Parser(description=__doc__)
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND", title="Commands")
    for name in PUBLIC:
        command = add(commands, name, f"download, unpack and check {name}; print its terms of use")
        command.how.add_argument("--check", action="store_true", help="download nothing; check the existing files")
    command = add(commands, "check", "list all defects of a data set in COCO's or ADE20K's layout")
    what, coco, maps = (
        command.what,
        command.add_argument_group("How: COCO's layout"),
        command.add_argument_group("How: ADE20K's layout"),
    )
    what.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="split to check; may be repeated (default: all)"
    )
    coco.add_argument(
        "--annotations",
        type=cli.at_home,
        metavar="JSON",
        help="JSON file relative to root (default: annotations/instances_SPLIT.json)",
    )
    coco.add_argument(
        "--images", type=cli.at_home, metavar="FOLDER", help="folder of images relative to root (default: SPLIT)"
    )
    coco.add_argument(
        "--boxes",
        action="store_true",
        help="check boxes but not outlines, for training with heads.masks=False",
    )
    maps.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes (default: the list in root)")
    maps.add_argument("--keep-zero-label", action="store_true", help="0 in a map is the first class, not void")
    maps.add_argument(
        "--values", nargs="+", type=int, metavar="V", help="stored value of each class, e.g. 0 255 (values=)"
    )
    maps.add_argument(
        "--image-suffix", metavar="END", help="end of the names of images, e.g. _leftImg8bit.png (image_suffix=)"
    )
    maps.add_argument("--map-suffix", metavar="END", help="end of the names of maps, e.g. _mask.png (map_suffix=)")
    maps.add_argument(
        "--allow-absent", action="store_true", help="accept a class that has no pixel in any map (allow_absent=)"
    )
    command = add(commands, "shapes", "write generated scenes in COCO's or ADE20K's layout")
    command.what.add_argument("--format", choices=WRITERS, default="coco", help="layout (default: coco)")
    for option, default, text in (
        ("train", 2000, "training scenes"),
        ("val", 500, "validation scenes"),
        ("size", 128, "pixels per side"),
    ):
        command.what.add_argument(
            f"--{option}", type=cli.count, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    command.how.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all scenes (default: 0)")
    return found


def add(commands: argparse._SubParsersAction[cli.Parser], name: str, help: str) -> cli.Parser:
    command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    command.where.add_argument("--root", required=True, type=cli.path, metavar="DIR", help="folder of the data set")
    return command


def public(args: argparse.Namespace) -> None:
    from mae_transfer.data.archives import DATA_SETS, prepare

    data_set = DATA_SETS[args.command]
    print(data_set.terms)
    folder = args.root / data_set.folder if args.check else prepare(data_set, args.root)
    defects = {split: data_set.check(str(folder), split=split) for split in data_set.splits}
    if args.check:
        report(defects)
    else:  # the archives are verified, so remaining defects are in the published data: COCO has boxes without area
        show(defects)
        print(f"ready: --set data.root={folder}   (the archives in {args.root} are no longer needed)")


def check(args: argparse.Namespace) -> None:
    check_any = cli.named("mae_transfer.data.checks:check_any")
    files = {name: getattr(args, name) for name in ("annotations", "images", "image_suffix", "map_suffix")}
    coding = {
        "classes": args.classes,
        "reduce_zero_label": not args.keep_zero_label,
        "values": args.values,
        "allow_absent": args.allow_absent,
    }
    report(check_any(args.root, splits=args.split, **files, masks=not args.boxes, **coding))


def show(defects: Mapping[str, Sequence[Defect]]) -> None:
    for split, found in defects.items():
        stops = any(not defect.policy for defect in found)
        summary = "" if stops else " no defect that stops a run" if found else " no defect"
        print("\n  ".join([f"{split}:{summary}", *map(str, found)]))


def report(defects: Mapping[str, Sequence[Defect]]) -> None:
    """Print all defects; ValueError if one of them stops a run."""
    show(defects)
    if numbers := [defect.number for found in defects.values() for defect in found if not defect.policy]:
        raise ValueError(f"{sum(numbers)} defects, listed above")


if __name__ == "__main__":
    sys.exit(main())
