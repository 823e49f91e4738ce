"""Download, check, pack and write data sets.

  python tools/prepare_data.py coco --root /data/coco     (download, unpack, check; can be repeated)
  python tools/prepare_data.py pets --root /data/pets --download     (folders train/ and val/)
  python tools/prepare_data.py check --root /data/mine --annotations labels.json --images photos
  python tools/prepare_data.py pack --root /data/imagenet     (writes the pack /data/imagenet.zip)
  python tools/prepare_data.py shapes --root data/shapes --format coco --train 2000 --val 500

check lists all defects of a data set. --help after a command shows its options.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mae_transfer.cli.parser import Parser, count, path
from mae_transfer.disk import at_home

if TYPE_CHECKING:
    from mae_transfer.data.reports import Defect

PUBLIC = ("coco", "ade20k")
LABELLED = (
    "aircraft", "caltech101", "cars", "cifar10", "cifar100", "dtd", "eurosat", "flowers102", "food101", "pets",
    "sun397",
)  # fmt: skip


def add_options(parser: Parser) -> None:
    """Add the commands and their options."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="Commands")

    def add(name: str, text: str, root: str = "folder of the data set") -> Parser:
        command: Parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.where.add_argument("--root", required=True, type=path, metavar="DIR", help=root)
        return command

    for name in PUBLIC:
        command = add(name, f"download, unpack and check {name}; print its terms of use")
        command.how.add_argument("--check", action="store_true", help="download nothing; check the existing files")
    for name in LABELLED:
        command = add(name, f"lay {name} out as folders train/<class> and val/<class>")
        source = "folder with torchvision's files of the set (default: ROOT/source)"
        command.where.add_argument("--source", type=path, metavar="DIR", help=source)
        download = "download the files with torchvision, which checks them; read the terms of use first"
        command.how.add_argument("--download", action="store_true", help=download)
    add_check_options(add("check", "list all defects of a data set in COCO's or ADE20K's layout"))
    root = "folder of images at any depth; or a zip that `zip -0` made, which only gets its index"
    command = add("pack", "pack a folder of images into one file with an index", root)
    command.where.add_argument("--to", type=path, metavar="FILE", help="zip to write for a folder (default: ROOT.zip)")
    command = add("shapes", "write generated scenes in COCO's or ADE20K's layout")
    command.what.add_argument("--format", choices=("coco", "ade"), default="coco", help="layout (default: coco)")
    scenes = {"train": (2000, "training scenes"), "val": (500, "validation scenes"), "size": (128, "pixels per side")}
    for name, (default, text) in scenes.items():
        what = f"{text} (default: {default})"
        command.what.add_argument(f"--{name}", type=count, default=default, metavar="N", help=what)
    command.how.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all scenes (default: 0)")


def add_check_options(parser: Parser) -> None:
    """Add the options of the command `check`."""
    coco = parser.add_argument_group("How: COCO's layout")
    maps = parser.add_argument_group("How: ADE20K's layout")
    split = "split to check; may be repeated (default: all)"
    annotations = "JSON file relative to root (default: annotations/instances_SPLIT.json)"
    images = "folder of images relative to root (default: SPLIT)"
    boxes = "check boxes but not outlines, for training with heads.masks=False"
    classes = "names of the classes (default: the list in root)"
    zero = "0 in a map is the first class, not void"
    values = "stored value of each class, e.g. 0 255 (values=)"
    photos = "end of the names of images, e.g. _leftImg8bit.png (image_suffix=)"
    labels = "end of the names of maps, e.g. _mask.png (map_suffix=)"
    absent = "accept a class that has no pixel in any map (allow_absent=)"
    parser.what.add_argument("--split", action="append", default=[], metavar="NAME", help=split)
    coco.add_argument("--annotations", type=at_home, metavar="JSON", help=annotations)
    coco.add_argument("--images", type=at_home, metavar="FOLDER", help=images)
    coco.add_argument("--boxes", action="store_true", help=boxes)
    maps.add_argument("--classes", nargs="+", metavar="NAME", help=classes)
    maps.add_argument("--keep-zero-label", action="store_true", help=zero)
    maps.add_argument("--values", nargs="+", type=int, metavar="V", help=values)
    maps.add_argument("--image-suffix", metavar="END", help=photos)
    maps.add_argument("--map-suffix", metavar="END", help=labels)
    maps.add_argument("--allow-absent", action="store_true", help=absent)


def run(args: argparse.Namespace) -> None:
    """Download and check a public data set, lay one out as folders, check or pack any, or write generated scenes."""
    if args.command in PUBLIC:
        public(args)
    elif args.command in LABELLED:
        from mae_transfer.data.image_sets import lay_out

        source = args.source or args.root / "source"
        print(lay_out(args.command, source=source, root=args.root, download=args.download), end="")
        print(f"ready: --set data.root={args.root}   (the files in {source} are no longer needed)")
    elif args.command == "check":
        from mae_transfer.data.checks import check_any

        same = ("annotations", "images", "image_suffix", "map_suffix", "classes", "values", "allow_absent")
        options = {name: getattr(args, name) for name in same}
        options |= {"masks": not args.boxes, "reduce_zero_label": not args.keep_zero_label}
        report(check_any(args.root, splits=args.split, options=options))
    elif args.command == "pack":
        from mae_transfer.data.packs import write_index, write_pack

        root = args.root.resolve() if args.root.name == ".." else args.root.absolute()  # its name is the zip's
        if root.is_file() and args.to:
            raise ValueError(f"--to {args.to} is for a folder; {root} is a zip, which only gets its index: omit --to")
        to = root if root.is_file() else args.to or root.with_name(f"{root.name}.zip")
        count = write_index(to) if root.is_file() else write_pack(root, to)
        print(f"ready: --set data.root={to}   ({count:,} images)")
    else:
        from mae_transfer.data.dense_shapes import write_ade, write_coco

        write = write_coco if args.format == "coco" else write_ade
        write(args.root, train=args.train, val=args.val, size=args.size, seed=args.seed)


def public(args: argparse.Namespace) -> None:
    """Download, unpack and check a public data set, or only check it."""
    from mae_transfer.data.archives import DATA_SETS, prepare

    data_set = DATA_SETS[args.command]
    print(data_set.terms)
    folder = args.root / data_set.folder if args.check else prepare(data_set, args.root)
    defects = {split: data_set.check(str(folder), split) for split in data_set.splits}
    if args.check:
        report(defects)
    else:  # the archives are verified, so remaining defects are in the published data: COCO has boxes without area
        show(defects)
        print(f"ready: --set data.root={folder}   (the archives in {args.root} are no longer needed)")


def show(defects: Mapping[str, Sequence[Defect]]) -> None:
    """Print all defects of each split."""
    for split, found in defects.items():
        stops = any(not defect.policy for defect in found)
        summary = "" if stops else " no defect that stops a run" if found else " no defect"
        print("\n  ".join([f"{split}:{summary}", *map(str, found)]))


def report(defects: Mapping[str, Sequence[Defect]]) -> None:
    """Print all defects; ValueError if one of them stops a run."""
    show(defects)
    if numbers := [defect.number for found in defects.values() for defect in found if not defect.policy]:
        raise ValueError(f"{sum(numbers)} defects, listed above")
