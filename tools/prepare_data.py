"""Fetch, check and write data sets.

python tools/prepare_data.py coco --root /data/coco                       download, unpack, check; asked again, it continues
python tools/prepare_data.py ade20k --root /data/ade
python tools/prepare_data.py check --root /data/mine --annotations labels.json --images photos     every defect at once, of any data set
python tools/prepare_data.py check --root /data/camvid --classes Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist
python tools/prepare_data.py shapes --root data/shapes --format coco --train 2000 --val 500       generated scenes instead of photographs
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mae_transfer import cli
from mae_transfer.data.any_check import check_any
from mae_transfer.data.archives import DATA_SETS, DataSet, prepare
from mae_transfer.data.defects import Defect
from mae_transfer.data.dense_shapes import write_ade, write_coco

WRITERS = {"coco": write_coco, "ade": write_ade}


def main() -> int:
    args = parser().parse_args()
    if args.command == "check":
        return cli.guarded(lambda: check(args))
    if args.command == "shapes":
        return cli.guarded(lambda: WRITERS[args.format](args.root, train=args.train, val=args.val, size=args.size, seed=args.seed))
    return cli.guarded(lambda: public(DATA_SETS[args.command], args.root, only_check=args.check))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, data_set in DATA_SETS.items():
        command = commands.add_parser(name, help=f"download, unpack and check {name}", description=data_set.terms)
        command.add_argument("--check", action="store_true", help="download nothing: check what is there")
        add_root(command)
    command = commands.add_parser("check", help="name every defect of a data set in COCO's or ADE20K's layout")
    add_root(command)
    command.add_argument("--split", action="append", default=[], metavar="NAME", help="which; may be repeated (default: all that are there)")
    command.add_argument(
        "--annotations", type=cli.at_home, metavar="JSON", help="COCO: a json instead of annotations/instances_SPLIT.json, from root"
    )
    command.add_argument("--images", type=cli.at_home, metavar="FOLDER", help="COCO: another folder of images than SPLIT, relative to root")
    command.add_argument("--boxes", action="store_true", help="COCO: judge as boxes alone are trained on, heads.masks=False; outlines are not read")
    command.add_argument("--classes", nargs="+", metavar="NAME", help="ADE20K's layout: the classes (default: root's own list)")
    command.add_argument("--keep-zero-label", action="store_true", help="ADE20K's layout: a map's 0 is the first class, not void")
    command.add_argument("--values", nargs="+", type=int, metavar="V", help="ADE20K's layout: the stored value of each class, e.g. 0 255 (values=)")
    command.add_argument("--image-suffix", metavar="END", help="ADE20K's layout: how names of images end, e.g. _leftImg8bit.png (image_suffix=)")
    command.add_argument("--map-suffix", metavar="END", help="ADE20K's layout: how names of maps end, e.g. _mask.png (map_suffix=)")
    command.add_argument("--allow-absent", action="store_true", help="ADE20K's layout: go on where a class has no pixel in any map (allow_absent=)")
    command = commands.add_parser("shapes", help="write generated scenes in COCO's or ADE20K's layout")
    add_root(command)
    command.add_argument("--format", choices=WRITERS, default="coco", help="layout (default: coco)")
    for option, default, what in (("train", 2000, "training scenes"), ("val", 500, "validation scenes"), ("size", 128, "pixels per side")):
        command.add_argument(f"--{option}", type=cli.count, default=default, metavar="N", help=f"{what} (default: {default})")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of all scenes (default: 0)")
    return found


def add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", required=True, type=cli.path, metavar="DIR", help="folder of the data set")


def public(data_set: DataSet, root: Path, *, only_check: bool) -> None:
    """Print the terms, fetch unless told otherwise, and check every split."""
    print(data_set.terms)
    folder = root / data_set.folder if only_check else prepare(data_set, root)
    defects = {split: data_set.check(str(folder), split=split) for split in data_set.splits}
    if only_check:
        report(defects)
    else:  # what is wrong in spite of whole files is the authors' own: COCO has boxes without area
        show(defects)
        print(f"ready: --set data.root={folder}   (the archives in {root} are no longer needed)")


def check(args: argparse.Namespace) -> None:
    files = {name: getattr(args, name) for name in ("annotations", "images", "image_suffix", "map_suffix")}
    coding = {"classes": args.classes, "reduce_zero_label": not args.keep_zero_label, "values": args.values, "allow_absent": args.allow_absent}
    report(check_any(args.root, splits=args.split, **files, masks=not args.boxes, **coding))


def show(defects: Mapping[str, Sequence[Defect]]) -> None:
    for split, found in defects.items():
        free = "" if any(not defect.policy for defect in found) else " no defect that stops a run" if found else " no defect"
        print("\n  ".join([f"{split}:{free}", *map(str, found)]))


def report(defects: Mapping[str, Sequence[Defect]]) -> None:
    """Print everything; ValueError where anything stops a run."""
    show(defects)
    numbers = [defect.number for found in defects.values() for defect in found if not defect.policy]
    if numbers:
        raise ValueError(f"{sum(numbers)} defects, listed above")


if __name__ == "__main__":
    sys.exit(main())
