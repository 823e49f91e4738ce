"""Where a result stands: each table's layout, declared once, as a function from records to places (row, column).

`Layout.places` adds the published number that each place is compared with (match.py). `why_not` is None only if the run
did what that number was measured with: then the two stand side by side. A row has the user's own name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from mae_transfer.suite.match import (
    EARLIER,
    FINE_GRAINED,
    SCRATCH,
    TARGETS,
    PretrainingFacts,
    backbone,
    data_of,
    nearest,
    pretraining,
)
from mae_transfer.suite.published import PUBLISHED, Published
from mae_transfer.suite.store.records import Record

PROTOCOLS = {"finetune": "fine-tuning", "linear": "linear"}
AP = {"bbox/AP": "box AP", "segm/AP": "mask AP"}
IOU = {"mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"}
ROWS: dict[str, dict[str, None]] = defaultdict(dict)  # of each table, in the paper's order
COLUMNS: dict[str, dict[str, None]] = defaultdict(dict)
KNOWN: dict[tuple[str, str], list[Published]] = defaultdict(list)  # the numbers of a table's column
for _number in PUBLISHED:
    ROWS[_number.table][_number.row] = None
    COLUMNS[_number.table][_number.column] = None
    KNOWN[_number.table, _number.column].append(_number)
ALONE = "no published number"


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
            numbers = [number for number in KNOWN.get((self.table, place.column), []) if number.unit == place.unit]
            found = nearest(numbers, place.record)
            if found:
                yield place._replace(published=found[0], why_not=found[1])
            elif numbers and place.record.result.record is None:
                yield place._replace(why_not=EARLIER)
            else:
                yield place


def at(record: Record, row: str, column: str) -> Place:
    """Return the place of a record's own number."""
    return Place(record, row, column, ALONE, record.result.value)


def row_of(record: Record) -> str:
    """Return the suite's name of the pretraining; else the run's own."""
    pretrain = record.result.pretrain
    return record.label or (SCRATCH if pretrain == "none" else pretrain)


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


def labelled(table: str) -> Callable[[Sequence[Record]], Iterator[Place]]:
    """Return the places of an ablation: runs that a suite calls as the table does, and runs that did what a row did."""

    def places(records: Sequence[Record]) -> Iterator[Place]:
        found = [(record, PROTOCOLS[protocol]) for record, protocol, _ in classified(records, *PROTOCOLS)]
        alike = [nearest(KNOWN.get((table, protocol), []), record) for record, protocol in found]
        matched = [near[0].row if near and near[1] is None else None for near in alike]
        several = len(set(matched) - {None}) > 1  # every ablation has the default run
        for (record, protocol), row in zip(found, matched, strict=True):
            if record.label in ROWS[table] or (several and row):
                yield at(record, row_of(record), protocol)

    return places


def mask_tokens(records: Sequence[Record]) -> Iterator[Place]:
    """Table 1c, with the FLOPs of pretraining relative to those without mask tokens in the encoder."""
    yield from labelled("1c")(records)
    flops = [(record, record.result.flops_per_image) for record in pretrainings(records) if record.label in ROWS["1c"]]
    base = [number for record, number in flops if record.label == "encoder w/o [M]" and number]
    for record, number in flops:
        if base and number:
            yield at(record, str(record.label), "relative FLOPs")._replace(value=number / base[-1], unit="x")


def targets(records: Sequence[Record]) -> Iterator[Place]:
    """Table 1d."""
    for record, protocol, _ in classified(records, *PROTOCOLS):
        row = target_row(record, "1d")
        if row:
            yield at(record, row, PROTOCOLS[protocol])


def target_row(record: Record, table: str) -> str | None:
    """Return the row of a table of targets; None for other weights. Without a record the suite's name counts."""
    found = pretraining(record.result)
    if record.result.record is None:
        return record.label if record.label in ROWS[table] else None
    return record.label or TARGETS.get(found.target) if found else None


def by_backbone(*protocols: str) -> Callable[[Sequence[Record]], Iterator[Place]]:
    """Return the places of a table of pretrainings by backbones: tables 3 and 12."""

    def places(records: Sequence[Record]) -> Iterator[Place]:
        for record, _, _ in classified(records, *protocols):
            if data_of(record.result) not in FINE_GRAINED.values():
                yield at(record, row_of(record), backbone(record.result))

    return places


def fine_grained(records: Sequence[Record]) -> Iterator[Place]:
    """Table 6."""
    for record, _, _ in classified(records, "finetune"):
        name = data_of(record.result)
        if name in FINE_GRAINED.values():
            yield at(record, row_of(record), f"{name}, {backbone(record.result)}")


def by_suffix(protocol: str) -> Callable[[Sequence[Record]], Iterator[Place]]:
    """Return the places of a table by what follows the protocol's name: blocks of "partial-4", k of "knn-20"."""

    def places(records: Sequence[Record]) -> Iterator[Place]:
        for record, _, suffix in classified(records, protocol):
            whole = suffix == "all" and backbone(record.result) == "ViT-L/16"  # of its 24 blocks
            yield at(record, row_of(record), "24" if whole else suffix)

    return places


def robustness(records: Sequence[Record]) -> Iterator[Place]:
    """Table 13."""
    for record in records:
        if record.result.task == "robustness" and record.result.metric in ("top1", "mCE"):
            yield at(record, row_of(record), f"{record.result.dataset}, {backbone(record.result)}")


def detection(records: Sequence[Record]) -> Iterator[Place]:
    """Table 4."""
    for record, metric in dense(records, "detect", AP):
        yield at(record, row_of(record), f"{metric}, {backbone(record.result)}")


def schedules(records: Sequence[Record]) -> Iterator[Place]:
    """Runs of Li et al.'s protocol on COCO that did what one of the published schedules and variants did."""
    for record, metric in dense(records, "detect", AP):
        column = f"{metric}, {backbone(record.result)}"
        found = nearest(KNOWN.get(("coco", column), []), record)
        if found and found[1] is None:
            yield at(record, row_of(record), column)


def vitdet(records: Sequence[Record]) -> Iterator[Place]:
    """ViTDet's Mask R-CNN."""
    for record, metric in dense(records, "detect", AP):
        if "vitdet" in record.result.protocol:
            yield at(record, row_of(record), f"{metric}, {backbone(record.result)}")


def segmentation_figures(records: Sequence[Record]) -> Iterator[Place]:
    """Every figure of UperNet, beside others' runs of the public recipe."""
    for record, metric in dense(records, "segment", IOU):
        if record.result.protocol == "upernet":
            yield at(record, row_of(record), f"{metric}, {backbone(record.result)}")


def segmentation(records: Sequence[Record]) -> Iterator[Place]:
    """Table 5."""
    for record, _ in dense(records, "segment", {"mIoU": "mIoU"}):
        protocol = record.result.protocol
        column = backbone(record.result) + ("" if protocol == "upernet" else f", {protocol}")
        yield at(record, row_of(record), column)


def pixels_and_tokens(records: Sequence[Record]) -> Iterator[Place]:
    """Table 7: what the targets transfer to, and random initialisation beside them."""
    found = [(record, "top-1", "finetune") for record, _, _ in classified(records, "finetune")]
    found += [(record, metric, "li2021") for record, metric in dense(records, "detect", {"bbox/AP": "box AP"})]
    found += [(record, metric, "upernet") for record, metric in dense(records, "segment", {"mIoU": "mIoU"})]
    for record, metric, protocol in found:
        result = record.result
        row = target_row(record, "7") or (record.label or "random init" if result.pretrain == "none" else None)
        if row:
            data = data_of(result)
            parts = [data if data == "ImageNet" else f"{data} {metric}", backbone(result)]
            usual = protocol in result.protocol or (result.task == "detect" and result.scale != "paper")
            yield at(record, row, ", ".join(parts if usual else [*parts, result.protocol]))


def of_targets(records: Sequence[Record]) -> list[tuple[Record, str, PretrainingFacts]]:
    """Return the fine-tuned and probed pretrainings of this suite, each with its protocol and what its record says."""
    found = ((record, PROTOCOLS[p], pretraining(record.result)) for record, p, _ in classified(records, *PROTOCOLS))
    return [(record, protocol, about) for record, protocol, about in found if about]


def masks(records: Sequence[Record]) -> Iterator[Place]:
    """Table 1f, where more than one kind of mask was run."""
    found = of_targets(records)
    if len({(about.mask, about.hidden) for _, _, about in found}) > 1:
        for record, protocol, about in found:
            yield at(record, record.label or f"{about.mask} {about.hidden}", protocol)


def mask_ratios(records: Sequence[Record]) -> Iterator[Place]:
    """Figure 5, where more than one ratio of the random mask was run."""
    found = [one for one in of_targets(records) if one[2].mask == "random"]
    if len({about.hidden for _, _, about in found}) > 1:
        yield from (at(record, protocol, about.hidden) for record, protocol, about in found)


def lengths(records: Sequence[Record]) -> Iterator[Place]:
    """Figure 7, where more than one length of pretraining was run."""
    found = [one for one in of_targets(records) if one[2].mask == "random"]
    if len({about.epochs for _, _, about in found}) > 1:
        yield from (at(record, protocol, f"{about.epochs} epochs") for record, protocol, about in found)


def pretrainings(records: Sequence[Record]) -> list[Record]:
    """Return the records of pretraining runs, one of each."""
    return [
        r
        for r in records
        if r.result.task == "pretrain" and r.result.metric in ("val_loss", "train_loss") and r.result.status == "ok"
    ]


def overview(records: Sequence[Record]) -> Iterator[Place]:
    """Pretrainings by tasks: the main number of each transfer.

    A column's title also says what differs within the suite: protocol, backbone, data.
    """
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
        yield at(record, row_of(record), ", ".join(filter(None, (title, *varying))))


def _where(record: Record) -> tuple[str, str]:
    return backbone(record.result), data_of(record.result)


def nothing(records: Sequence[Record]) -> Iterable[Place]:
    """Published numbers only."""
    return ()


def survey(records: Sequence[Record]) -> Iterator[Place]:
    """Methods side by side, each at its backbone."""
    for record, protocol, suffix in classified(records, *PROTOCOLS, "knn"):
        row = f"{row_of(record)}, {backbone(record.result)}"
        yield at(record, row, PROTOCOLS.get(protocol, f"k-NN, k = {suffix}"))
