"""Where a result stands: each table's layout, declared once, as a function from records to places (row, column).

`why_not` is None only where the run did what the published number was measured with: then the two stand in one line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from mae_transfer.results import Result
from mae_transfer.suite.names import (
    EVALUATED,
    FINE_GRAINED,
    TARGETS,
    backbone,
    dataset,
    detected_epochs,
    full_length,
    method,
    paper_names,
)
from mae_transfer.suite.published import PUBLISHED, Published
from mae_transfer.suite.records import Record

PROTOCOLS = {"finetune": "fine-tuning", "linear": "linear"}
AP = {"bbox/AP": "box AP", "segm/AP": "mask AP"}
IOU = {"mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"}
ROWS: dict[str, dict[str, None]] = defaultdict(dict)  # of each table, in the paper's order
COLUMNS: dict[str, dict[str, None]] = defaultdict(dict)
KNOWN = {(number.table, number.row, number.column): number for number in PUBLISHED}
for _number in PUBLISHED:
    ROWS[_number.table][_number.row] = None
    COLUMNS[_number.table][_number.column] = None


class Place(NamedTuple):
    """A number of a record at its row and column."""

    record: Record
    row: str
    column: str
    why_not: str | None  # why it does not stand beside the published number; None: it does
    value: float | None  # mostly the result's own
    unit: str = "%"
    published: Published | None = (
        None  # the number that it stands beside, or that it comes nearest to if `why_not` is given
    )


class Layout(NamedTuple):
    """How a table is made of records."""

    title: str
    column_title: str
    needs: str
    spots: Callable[[Sequence[Record]], Iterable[Place]]  # places without their published numbers
    baseline: tuple[str, ...] = ()  # rows that others are compared with, the first that is there
    table: str = ""

    def places(self, records: Sequence[Record]) -> Iterator[Place]:
        """Yield the places of the records, each with its published number."""
        for place in self.spots(records):
            yield place._replace(published=KNOWN.get((self.table, place.row, place.column)))


def at(record: Record, row: str, column: str, *, like_paper: bool = True) -> Place:
    """Return the place of a record's own number; nothing that is not of the paper's scale is like the paper."""
    return Place(record, row, column, _why_not(record.result, like_paper=like_paper), record.result.value)


def _why_not(result: Result, *, like_paper: bool) -> str | None:
    if result.scale != "paper":
        return f"scale {result.scale}"
    if not full_length(result):
        return f"trained for {result.epochs:g} epochs"
    return None if like_paper else "another setting"


def row_of(table: str, record: Record) -> str:
    """Return the suite's or the paper's name of the pretraining, whichever the table has; else the suite's, else the run's own."""
    names = [record.label, *paper_names(record.result.pretrain)]
    if record.result.scale != "paper":  # nothing is compared, and one suite's tables call a row by one name
        return next(filter(None, names), record.result.pretrain)
    return next((name for name in names if name in ROWS[table]), record.label or record.result.pretrain)


def of_method(table: str, record: Record, column: str, *, like_paper: bool = True) -> Place:
    """Return the place of a number in a table whose rows are methods. A suite may call a row what it likes: beside the published number of a method
    stands only what Result.pretrain calls so, too, or weights of whose origin it says nothing.
    """
    row, pretrain = row_of(table, record), record.result.pretrain
    known = paper_names(pretrain)
    supported = row in known if known else method(pretrain) is None
    return at(
        record, row, column, like_paper=like_paper and supported and (row != EVALUATED or record.result.epochs == 0)
    )


def classified(records: Sequence[Record], *protocols: str) -> Iterator[tuple[Record, str, str]]:
    """Yield (record, first word of the protocol, rest) of the top-1 accuracies on the reported split."""
    for record in records:
        result = record.result
        first, _, rest = result.protocol.partition("-")
        if (
            result.task == "classify"
            and result.split == "val"
            and result.metric == "top1"
            and first in protocols
            and "labels" not in rest
        ):
            yield record, first, rest


def dense(records: Sequence[Record], task: str, metrics: dict[str, str]) -> Iterator[tuple[Record, str]]:
    """Yield (record, metric as the paper calls it) of detection or segmentation on the reported split."""
    for record in records:
        if record.result.task == task and record.result.metric in metrics and record.result.split == "val":
            yield record, metrics[record.result.metric]


def on_imagenet(record: Record) -> bool:
    """Return whether the number is one of ImageNet-1K."""
    return dataset(record.result.dataset) == "ImageNet"


def pixels_800(record: Record, target: str = "pixel") -> bool:
    """Return whether a run is of the ablations' kind: on ImageNet, pretrained for 800 epochs on the target."""
    found = method(record.result.pretrain)
    return on_imagenet(record) and found is not None and (found.target, found.epochs) == (target, "800")


def large_800(record: Record, target: str = "pixel") -> bool:
    """Return the same of a ViT-L/16."""
    return pixels_800(record, target) and backbone(record.result) == "ViT-L/16"


def labelled(table: str) -> Callable[[Sequence[Record]], Iterator[Place]]:
    """Return the places of an ablation whose rows only the suite knows (a decoder's depth is not in the weights)."""

    def places(records: Sequence[Record]) -> Iterator[Place]:
        for record, protocol, _ in classified(records, *PROTOCOLS):
            if record.label in ROWS[table]:
                found = method(record.result.pretrain)
                same = large_800(record) and found is not None and (found.mask, found.hidden) == ("random", "75%")
                yield at(record, record.label or "", PROTOCOLS[protocol], like_paper=same)

    return places


def mask_tokens(records: Sequence[Record]) -> Iterator[Place]:
    """Table 1c, with the FLOPs of pretraining relative to those without mask tokens in the encoder."""
    yield from labelled("1c")(records)
    flops = [(record, record.result.flops_per_image) for record in pretrainings(records) if record.label in ROWS["1c"]]
    base = [number for record, number in flops if record.label == "encoder w/o [M]" and number]
    for record, number in flops:
        if base and number:
            place = at(record, str(record.label), "relative FLOPs", like_paper=large_800(record))
            yield place._replace(value=number / base[-1], unit="x")


def targets(records: Sequence[Record]) -> Iterator[Place]:
    """Table 1d."""
    for record, protocol, _ in classified(records, *PROTOCOLS):
        found = method(record.result.pretrain)
        if found and found.target in TARGETS:
            yield at(
                record,
                TARGETS[found.target],
                PROTOCOLS[protocol],
                like_paper=large_800(record, found.target) and found.mask == "random",
            )


def by_backbone(table: str, *protocols: str) -> Callable[[Sequence[Record]], Iterator[Place]]:
    """Return the places of a table of pretrainings by backbones: tables 3 and 12."""

    def places(records: Sequence[Record]) -> Iterator[Place]:
        for record, _, _ in classified(records, *protocols):
            if dataset(record.result.dataset) not in FINE_GRAINED.values():
                yield of_method(table, record, backbone(record.result), like_paper=on_imagenet(record))

    return places


def fine_grained(records: Sequence[Record]) -> Iterator[Place]:
    """Table 6."""
    for record, _, _ in classified(records, "finetune"):
        name = dataset(record.result.dataset)
        if name in FINE_GRAINED.values():
            yield of_method("6", record, f"{name}, {backbone(record.result)}")


def by_suffix(table: str, protocol: str) -> Callable[[Sequence[Record]], Iterator[Place]]:
    """Return the places of a table by what follows the protocol's name: the tuned blocks of "partial-4", the neighbours of "knn-20"."""

    def places(records: Sequence[Record]) -> Iterator[Place]:
        for record, _, suffix in classified(records, protocol):
            if large_800(record) and record.result.scale == "paper":  # the length of figure 9, not of table 3
                yield at(record, "MAE", "24" if suffix == "all" else suffix)
            else:
                row = row_of(table, record)
                same = on_imagenet(record) and backbone(record.result) == "ViT-L/16" and row != "MAE"
                yield of_method(table, record, suffix, like_paper=same)

    return places


def robustness(records: Sequence[Record]) -> Iterator[Place]:
    """Table 13."""
    for record in records:
        if record.result.task == "robustness" and record.result.metric in ("top1", "mCE"):
            column = f"{record.result.dataset}, {backbone(record.result)}"
            yield (
                at(record, "MAE", column)
                if EVALUATED in paper_names(record.result.pretrain)
                else of_method("13", record, column)
            )


def detection(records: Sequence[Record]) -> Iterator[Place]:
    """Table 4; only Li et al.'s protocol is that table's."""
    for record, metric in dense(records, "detect", AP):
        same = dataset(record.result.dataset) == "COCO" and "li2021" in record.result.protocol
        yield of_method("4", record, f"{metric}, {backbone(record.result)}", like_paper=same)


def schedules(records: Sequence[Record]) -> Iterator[Place]:
    """MAE's ViT-B/16 on COCO by the length of training, Li et al.'s protocol."""
    for record, metric in dense(records, "detect", AP):
        result = record.result
        if (
            result.scale == "paper"
            and dataset(result.dataset) == "COCO"
            and "li2021" in result.protocol
            and "MAE" in paper_names(result.pretrain)
        ):
            row = f"MAE, {int(detected_epochs(result))} epochs"  # the lengths are counted in steps, half an epoch more than these
            yield Place(record, row, f"{metric}, {backbone(result)}", None, result.value)


def vitdet(records: Sequence[Record]) -> Iterator[Place]:
    """ViTDet's Mask R-CNN."""
    for record, metric in dense(records, "detect", AP):
        if "vitdet" in record.result.protocol:
            ours = record.result.scale == "paper" and "MAE" in paper_names(record.result.pretrain)
            row, same = (
                "Mask R-CNN" if ours else row_of("vitdet", record),
                ours and dataset(record.result.dataset) == "COCO",
            )
            yield at(record, row, f"{metric}, {backbone(record.result)}", like_paper=same)


def segmentation_figures(records: Sequence[Record]) -> Iterator[Place]:
    """Every figure of UperNet, beside others' runs of the public recipe."""
    for record, metric in dense(records, "segment", IOU):
        if record.result.protocol == "upernet":
            yield of_method(
                "ade",
                record,
                f"{metric}, {backbone(record.result)}",
                like_paper=dataset(record.result.dataset) == "ADE20K",
            )


def segmentation(records: Sequence[Record]) -> Iterator[Place]:
    """Table 5."""
    for record, _ in dense(records, "segment", {"mIoU": "mIoU"}):
        same = dataset(record.result.dataset) == "ADE20K" and record.result.protocol == "upernet"
        column = backbone(record.result) + (
            "" if record.result.protocol == "upernet" else f", {record.result.protocol}"
        )
        yield of_method("5", record, column, like_paper=same)


def pixels_and_tokens(records: Sequence[Record]) -> Iterator[Place]:
    """Table 7: what the targets transfer to, and random initialisation beside them."""
    found = [(record, "top-1", "finetune") for record, _, _ in classified(records, "finetune")]
    found += [(record, metric, "li2021") for record, metric in dense(records, "detect", {"bbox/AP": "box AP"})]
    found += [(record, metric, "upernet") for record, metric in dense(records, "segment", {"mIoU": "mIoU"})]
    for record, metric, protocol in found:
        ours, result = method(record.result.pretrain), record.result
        if (ours and ours.target in TARGETS) or result.pretrain == "none":
            data = dataset(result.dataset)
            same = ours is not None and ours[1:] == ("random", "75%", "1600") and protocol in result.protocol
            parts = [data if data == "ImageNet" else f"{data} {metric}", backbone(result)]
            parts += (
                []
                if protocol in result.protocol or (result.task == "detect" and result.scale != "paper")
                else [result.protocol]
            )
            row = TARGETS[ours.target] if ours else "random init"
            yield at(record, row, ", ".join(parts), like_paper=same and data in ("ImageNet", "COCO", "ADE20K"))


def masks(records: Sequence[Record]) -> Iterator[Place]:
    """Table 1f, where more than one kind of mask was run."""
    found = [(r, PROTOCOLS[p], m) for r, p, _ in classified(records, *PROTOCOLS) if (m := method(r.result.pretrain))]
    if len({(m.mask, m.hidden) for _, _, m in found}) > 1:
        yield from (at(r, f"{m.mask} {m.hidden}", protocol, like_paper=large_800(r)) for r, protocol, m in found)


def mask_ratios(records: Sequence[Record]) -> Iterator[Place]:
    """Figure 5, where more than one ratio of the random mask was run."""
    found = [
        (r, PROTOCOLS[p], m)
        for r, p, _ in classified(records, *PROTOCOLS)
        if (m := method(r.result.pretrain)) and m.mask == "random"
    ]
    if len({m.hidden for _, _, m in found}) > 1:
        yield from (at(r, protocol, m.hidden, like_paper=large_800(r)) for r, protocol, m in found)


def lengths(records: Sequence[Record]) -> Iterator[Place]:
    """Figure 7, where more than one length of pretraining was run."""
    found = [
        (r, PROTOCOLS[p], m)
        for r, p, _ in classified(records, *PROTOCOLS)
        if (m := method(r.result.pretrain)) and m.mask == "random"
    ]
    if len({m.epochs for _, _, m in found}) > 1:
        for record, protocol, m in found:
            same = on_imagenet(record) and backbone(record.result) == "ViT-L/16" and m.target == "pixel"
            yield at(record, protocol, f"{m.epochs} epochs", like_paper=same)


def costs(records: Sequence[Record]) -> Iterator[Place]:
    """Table 2: what pretraining costs, and what fine-tuning makes of it where the suite calls the rows as the paper does. Hours are those of the
    devices that ran it, so they never stand beside the paper's 128 TPUs.
    """
    for record, _, _ in classified(records, "finetune"):
        if record.label in ROWS["2"]:
            named, same = (
                str(record.label),
                pixels_800(record) and str(record.label).startswith(backbone(record.result)),
            )
            yield at(record, named, "fine-tuning", like_paper=same)
    runs = pretrainings(records)
    slowest: dict[tuple[object, ...], float] = defaultdict(float)
    for record in runs:
        slowest[_work(record)] = max(slowest[_work(record)], _hours(record))
    for record in runs:
        result, name = record.result, record.label or record.result.pretrain
        row = name if name in ROWS["2"] else f"{name}, {backbone(result)}"
        flops = result.flops_per_image / 1e9 if result.flops_per_image else None
        yield Place(record, row, "device hours", "hours of other devices", _hours(record), "h")
        yield Place(record, row, "tokens per image in the encoder", "not published", result.tokens_per_image, "tokens")
        yield Place(record, row, "GFLOPs per image, forward and backward", "not published", flops, "GFLOPs")
        if slowest[_work(record)] > _hours(record):
            yield Place(
                record,
                row,
                "speed-up over the slowest run here",
                "not published",
                slowest[_work(record)] / _hours(record),
                "x",
            )


def pretrainings(records: Sequence[Record]) -> list[Record]:
    """Return the records of pretraining runs, one of each."""
    return [
        r
        for r in records
        if r.result.task == "pretrain" and r.result.metric in ("val_loss", "train_loss") and r.result.status == "ok"
    ]


def _hours(record: Record) -> float:
    return record.result.wall_s * record.result.world_size / 3600


def _work(record: Record) -> tuple[object, ...]:
    """What two runs must share for their hours to compare."""
    result = record.result
    return result.backbone, result.dataset, result.images_seen, result.device, result.world_size


def overview(records: Sequence[Record]) -> Iterator[Place]:
    """Pretrainings by tasks: the main number of each transfer. A column's title also says what differs within the suite: protocol, backbone, data."""
    found: list[tuple[Record, str, tuple[str, ...]]] = []
    titles = {"finetune": "fine-tune", "partial": "partial", "linear": "linear", "knn": "k-NN"}
    for record, protocol, rest in classified(records, *titles):
        found.append((record, titles[protocol], (f"{'k = ' if protocol == 'knn' else ''}{rest}", *_where(record))))
    for task, metrics in (("detect", AP), ("segment", {"mIoU": "mIoU"})):
        found += [
            (record, metric, (record.result.protocol, *_where(record)))
            for record, metric in dense(records, task, metrics)
        ]
    for record, title, parts in found:
        alike = [others for _, same, others in found if same == title]
        varying = [part for number, part in enumerate(parts) if len({others[number] for others in alike}) > 1]
        yield at(record, row_of("summary", record), ", ".join(filter(None, (title, *varying))), like_paper=False)


def _where(record: Record) -> tuple[str, str]:
    return backbone(record.result), dataset(record.result.dataset)


def nothing(records: Sequence[Record]) -> Iterable[Place]:
    """Published numbers only."""
    return ()


def survey(records: Sequence[Record]) -> Iterator[Place]:
    """Methods side by side, each at its backbone."""
    for record, protocol, suffix in classified(records, *PROTOCOLS, "knn"):
        known = paper_names(record.result.pretrain)
        name, _, data = (known[0] if known else record.label or record.result.pretrain).partition(", ")
        row = ", ".join(filter(None, (name, backbone(record.result), data)))
        same = bool(known) and on_imagenet(record) and protocol != "knn"
        yield at(record, row, PROTOCOLS.get(protocol, f"k-NN, k = {suffix}"), like_paper=same)
