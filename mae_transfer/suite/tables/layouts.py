"""The tables and figures that there are, each declared once: which results stand in it, and at which row and column.

`Layout.places` adds the published number that each place is compared with (match.py). `why_not` is None only if the run
did what that number was measured with: then the two stand side by side. A row has the user's own name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import fmean
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
from mae_transfer.suite.published.measured import JUDGED_BY_CLASS
from mae_transfer.suite.store.records import Measurement

PROTOCOLS = {"finetune": "fine-tuning", "linear": "linear"}
AP = {"bbox/AP": "box AP", "segm/AP": "mask AP"}
IOU = {"mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"}
DENSE = (("detect", AP), ("segment", {"mIoU": "mIoU"}))
FROZEN = {
    "classify": {
        "knn-20": "k-NN", "linear": "linear", "efficient": "efficient", "cross": "cross", "ridge": "ridge",
        "logreg": "logreg",
    },
    "segment": {"frozen-knn": "frozen-knn", "frozen-logreg": "frozen-logreg"},
}  # fmt: skip
"""Protocols of frozen features by task, with their names in columns. Of k-NN one k counts, fixed beforehand."""
ROWS: dict[str, dict[str, None]] = defaultdict(dict)  # of each table, in the paper's order
COLUMNS: dict[str, dict[str, None]] = defaultdict(dict)
KNOWN: dict[tuple[str, str], list[Published]] = defaultdict(list)  # the numbers of a table's column
for _number in PUBLISHED:
    ROWS[_number.table][_number.row] = None
    COLUMNS[_number.table][_number.column] = None
    KNOWN[_number.table, _number.column].append(_number)
ALONE = "no published number"


class Spot(NamedTuple):
    """A number of a record at its row and column."""

    record: Measurement
    row: str
    column: str
    why_not: str | None  # why it does not stand beside the published number; None: it does
    value: float | None  # mostly the result's own
    unit: str = "%"
    published: Published | None = None  # the number that it stands beside, or comes nearest to if `why_not` is given


Hit = tuple[Measurement, str, str]
"""A record with the first word and the rest of its protocol ("partial", "4"), or with its metric ("box AP", "")."""
Choice = Callable[[Sequence[Measurement]], Iterable[Hit]]
Spots = Callable[[Sequence[Measurement]], Iterable[Spot]]


class Layout(NamedTuple):
    """How a table is made of records."""

    title: str
    column_title: str
    needs: str
    spots: Spots  # places without their published numbers
    baseline: tuple[str, ...] = ()  # rows that others are compared with, the first that is there
    table: str = ""

    def places(self, records: Sequence[Measurement]) -> Iterator[Spot]:
        """Yield the places of the records, each with its published number."""
        for place in self.spots(records):
            numbers = [number for number in KNOWN.get((self.table, place.column), []) if number.unit == place.unit]
            if found := nearest(numbers, place.record):
                yield place._replace(published=found[0], why_not=found[1])
            else:
                earlier = numbers and place.record.result.record is None
                yield place._replace(why_not=EARLIER) if earlier else place


def at(record: Measurement, row: str, column: str) -> Spot:
    """Return the place of a record's own number."""
    return Spot(record, row, column, ALONE, record.result.value)


def row_of(record: Measurement) -> str:
    """Return the suite's name of the pretraining; else the run's own."""
    pretrain = record.result.pretrain
    return record.label or (SCRATCH if pretrain == "none" else pretrain)


def top1(*protocols: str) -> Choice:
    """Return what yields the top-1 accuracies of some protocols on the reported split."""

    def choose(records: Sequence[Measurement]) -> Iterator[Hit]:
        for record in records:
            result = record.result
            first, _, rest = result.protocol.partition("-")
            reported = (result.task, result.split, result.metric) == ("classify", "val", "top1")
            if reported and first in protocols and "labels" not in rest:
                yield record, first, rest

    return choose


def dense(task: str, metrics: dict[str, str]) -> Choice:
    """Return what yields detection or segmentation on the reported split, with the paper's names of the metrics."""
    return lambda records: (
        (record, metrics[record.result.metric], "")
        for record in records
        if record.result.task == task and record.result.metric in metrics and record.result.split == "val"
    )


def listed(choice: Choice, column: Callable[[Measurement, str, str], str | None]) -> Spots:
    """Return the places of a table of pretrainings; records without a column are left out."""
    return lambda records: (
        at(hit[0], row_of(hit[0]), title) for hit in choice(records) if (title := column(*hit)) is not None
    )


def of_backbone(record: Measurement, *_: str) -> str | None:
    """Tables 3 and 12."""
    return None if data_of(record.result) in FINE_GRAINED.values() else backbone(record.result)


def of_data(record: Measurement, *_: str) -> str | None:
    """Table 6."""
    name = data_of(record.result)
    return f"{name}, {backbone(record.result)}" if name in FINE_GRAINED.values() else None


def of_suffix(record: Measurement, _: str, suffix: str) -> str:
    """Return what follows the protocol's name: blocks of "partial-4", k of "knn-20"."""
    whole = suffix == "all" and backbone(record.result) == "ViT-L/16"  # of its 24 blocks
    return "24" if whole else suffix


def of_metric(record: Measurement, metric: str, _: str = "", *, protocol: str = "") -> str | None:
    """Tables of detection and segmentation by metric and backbone, of protocols with this text in their name."""
    return f"{metric}, {backbone(record.result)}" if protocol in record.result.protocol else None


def of_schedule(record: Measurement, metric: str, _: str) -> str | None:
    """Runs of Li et al.'s protocol on COCO that did what one of the published schedules and variants did."""
    column = str(of_metric(record, metric))
    found = nearest(KNOWN.get(("coco", column), []), record)
    return column if found and found[1] is None else None


def of_segmenter(record: Measurement, *_: str) -> str:
    """Table 5."""
    protocol = record.result.protocol
    return backbone(record.result) + ("" if protocol == "upernet" else f", {protocol}")


def labelled(table: str) -> Spots:
    """Return the places of an ablation: runs that a suite calls as the table does, and runs that did what a row did."""

    def spots(records: Sequence[Measurement]) -> Iterator[Spot]:
        found = [(record, PROTOCOLS[protocol]) for record, protocol, _ in top1(*PROTOCOLS)(records)]
        alike = [nearest(KNOWN.get((table, protocol), []), record) for record, protocol in found]
        matched = [near[0].row if near and near[1] is None else None for near in alike]
        several = len(set(matched) - {None}) > 1  # every ablation has the default run
        for (record, protocol), row in zip(found, matched, strict=True):
            if record.label in ROWS[table] or (several and row):
                yield at(record, row_of(record), protocol)

    return spots


def mask_tokens(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Table 1c, with the FLOPs of pretraining relative to those without mask tokens in the encoder."""
    yield from labelled("1c")(records)
    flops = [(record, record.result.flops_per_image) for record in pretrainings(records) if record.label in ROWS["1c"]]
    base = [number for record, number in flops if record.label == "encoder w/o [M]" and number]
    for record, number in flops:
        if base and number:
            yield at(record, str(record.label), "relative FLOPs")._replace(value=number / base[-1], unit="x")


def targets(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Table 1d."""
    for record, protocol, _ in top1(*PROTOCOLS)(records):
        if row := target_row(record, "1d"):
            yield at(record, row, PROTOCOLS[protocol])


def target_row(record: Measurement, table: str) -> str | None:
    """Return the row of a table of targets; None for other weights. Without a record the suite's name counts."""
    found = pretraining(record.result)
    if record.result.record is None:
        return record.label if record.label in ROWS[table] else None
    return record.label or TARGETS.get(found.target) if found else None


def robustness(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Table 13."""
    for record in records:
        if record.result.task == "robustness" and record.result.metric in ("top1", "mCE"):
            yield at(record, row_of(record), f"{record.result.dataset}, {backbone(record.result)}")


def pixels_and_tokens(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Table 7: what the targets transfer to, and random initialisation beside them."""
    found = [(record, "top-1", "finetune") for record, _, _ in top1("finetune")(records)]
    found += [(record, metric, "li2021") for record, metric, _ in dense("detect", {"bbox/AP": "box AP"})(records)]
    found += [(record, metric, "upernet") for record, metric, _ in dense("segment", {"mIoU": "mIoU"})(records)]
    for record, metric, protocol in found:
        result = record.result
        row = target_row(record, "7") or (record.label or "random init" if result.pretrain == "none" else None)
        if row:
            data = data_of(result)
            parts = [data if data == "ImageNet" else f"{data} {metric}", backbone(result)]
            usual = protocol in result.protocol or (result.task == "detect" and result.scale != "paper")
            yield at(record, row, ", ".join(parts if usual else [*parts, result.protocol]))


def varied(
    varies: Callable[[PretrainingFacts], object],
    row: Callable[[PretrainingFacts], str] | None,
    column: Callable[[PretrainingFacts], str] | None,
    *,
    kinds: Sequence[str] = (),
) -> Spots:
    """Return the places of own pretrainings, fine-tuned and probed, where more than one value was run.

    Args:
        varies: what must have more than one value.
        row, column: their names; None: the protocol, or for the row the suite's name if there is one.
        kinds: the masks that count; empty: all.
    """

    def spots(records: Sequence[Measurement]) -> Iterator[Spot]:
        known = ((record, PROTOCOLS[p], pretraining(record.result)) for record, p, _ in top1(*PROTOCOLS)(records))
        found = [(record, p, facts) for record, p, facts in known if facts and (not kinds or facts.mask in kinds)]
        if len({varies(facts) for _, _, facts in found}) > 1:
            for record, protocol, facts in found:
                name = record.label or row(facts) if row else protocol
                yield at(record, name, column(facts) if column else protocol)

    return spots


def pretrainings(records: Sequence[Measurement]) -> list[Measurement]:
    """Return the records of pretraining runs, one of each."""
    found = [record for record in records if record.result.task == "pretrain" and record.result.status == "ok"]
    first = ("val_loss", "train_loss", "val_feature_spread", "train_feature_spread")  # one of them per run
    return [record for record in found if record.result.metric in first]


def overview(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Pretrainings by tasks: the main number of each transfer.

    A column's title also says what differs within the suite: protocol, backbone, data.
    """
    found: list[tuple[Measurement, str, tuple[str, ...]]] = []
    titles = {"finetune": "fine-tune", "partial": "partial", "linear": "linear", "knn": "k-NN"}
    titles |= {name: name for name in ("efficient", "cross", "ridge", "logreg")}
    for record, protocol, rest in top1(*titles)(records):
        if not rest.endswith("shot"):
            found.append((record, titles[protocol], (f"{'k = ' if protocol == 'knn' else ''}{rest}", *_where(record))))
    for task, metrics in DENSE:
        found += [
            (one, metric, (one.result.protocol, *_where(one))) for one, metric, _ in dense(task, metrics)(records)
        ]
    for record, title, parts in found:
        alike = [others for _, same, others in found if same == title]
        varying = [part for number, part in enumerate(parts) if len({others[number] for others in alike}) > 1]
        yield at(record, row_of(record), ", ".join(filter(None, (title, *varying))))


def _where(record: Measurement) -> tuple[str, str]:
    return backbone(record.result), data_of(record.result)


def frozen(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Frozen features: protocols by data. A single column says no more than the table of its protocol."""
    known = {record.result.dataset: data_of(record.result) for record in records if record.result.status == "ok"}
    spots: list[Spot] = []
    for record in records:
        result = record.result
        failed = result.status != "ok"
        data = known.get(result.dataset, data_of(result))
        title = FROZEN.get(result.task, {}).get(result.protocol)
        if title and result.split == "val" and (failed or result.metric == _custom(result.task, data)):
            spots.append(at(record, row_of(record), f"{title}, {data}"))
    return iter(spots if len({spot.column for spot in spots}) > 1 else ())


def _custom(task: str, data: str) -> str:
    """Return the metric that a data set is reported with by custom."""
    if task == "segment" or data not in JUDGED_BY_CLASS:
        return "mIoU" if task == "segment" else "top1"
    from mae_transfer.interfaces import MEAN_PER_CLASS  # imports torch, which a table rarely needs

    return MEAN_PER_CLASS


def survey(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Methods side by side, each at its backbone."""
    for record, protocol, suffix in top1(*PROTOCOLS, "knn")(records):
        row = f"{row_of(record)}, {backbone(record.result)}"
        yield at(record, row, PROTOCOLS.get(protocol, f"k-NN, k = {suffix}"))


def costs(records: Sequence[Measurement]) -> Iterator[Spot]:
    """Table 2: hours, speed and work of each pretraining, and its fine-tuning if its row has a name of the paper's.

    A column of hours or of images per second names its device, so that figures of different devices never mix.
    """
    for record, _, _ in top1("finetune")(records):
        if record.label in ROWS["2"]:
            yield at(record, str(record.label), "fine-tuning")
    runs = pretrainings(records)
    slowest = _slowest(runs)
    for record in runs:
        result, row, spent = record.result, _cost_row(record, runs), hours(record)
        made, flops = result.record, result.flops_per_image
        for device, some in spent.items():
            yield Spot(record, row, f"hours on {device}", ALONE, some, "h")
        if made and made.train_seconds:  # the time of an earlier version includes evaluation
            speed = result.images_seen / made.train_seconds
            yield Spot(record, row, f"images/s on {_devices(record)}", ALONE, speed, "images/s")
        most, name = slowest.get(_work(record), (0.0, row))
        if name != row and len(spent) == 1 and (own := next(iter(spent.values()))):
            yield Spot(record, row, "speed-up over the slowest", ALONE, most / own, "x")
        yield Spot(record, row, "tokens per image", ALONE, result.tokens_per_image, "tokens")
        yield Spot(record, row, "GFLOPs per image", ALONE, flops / 1e9 if flops else None, "GFLOPs")


def _cost_row(record: Measurement, runs: Sequence[Measurement]) -> str:
    """Return the name of a pretraining, with its backbone if they differ."""
    name = record.label or record.result.pretrain
    several = len({one.result.backbone for one in runs}) > 1
    return f"{name}, {backbone(record.result)}" if several and name not in ROWS["2"] else name


def _slowest(runs: Sequence[Measurement]) -> dict[tuple[object, ...], tuple[float, str]]:
    """Return the mean hours and the row of the slowest pretraining, by what hours depend on besides the method."""
    spent: dict[tuple[object, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in runs:
        spent[_work(record)][_cost_row(record, runs)].append(sum(hours(record).values()))
    return {work: max((fmean(some), row) for row, some in rows.items()) for work, rows in spent.items()}


def hours(record: Measurement) -> dict[str, float]:
    """Return the hours of training by device, summed over equal devices.

    Results of an earlier version also count evaluation, and say so.
    """
    result = record.result
    if result.record is not None:
        return result.record.device_hours()
    return {f"{result.device}, includes evaluation": result.wall_s * result.world_size / 3600}


def _devices(record: Measurement) -> str:
    """Return what a run trained on: "8 x NVIDIA H100"; sittings on other devices are named one after the other."""
    made = record.result.record
    sets = dict.fromkeys(tuple(sorted(sitting.devices)) for sitting in made.sittings) if made else {}
    return ", then ".join(
        " and ".join(f"{devices.count(name)} x {name}" if len(devices) > 1 else name for name in dict.fromkeys(devices))
        for devices in sets
    )


def _work(record: Measurement) -> tuple[object, ...]:
    """Return what two runs must share for their hours to compare."""
    result = record.result
    return result.backbone, result.dataset, result.images_seen, tuple(hours(record)), result.world_size


MAE = ("MAE", "pixel (w/ norm)")
ABLATION = "a suite with configs/ablations/table{}.py's rows: fine-tuning and linear probing of each"
UPERNET = "ADE20K UperNet: all figures, and others' runs"
ROBUST = "Table 13: robustness, top-1 %, and for imagenet-c the mean corruption error % (lower is better)"
OF_TARGETS = "fine-tuning or linear probing of MAEs of several targets"
OF_RATIOS = "fine-tuning or linear probing of MAEs of several ratios"
DENSE_OF_TARGETS = "fine-tuning, detection or segmentation of MAEs of several targets"
PRETRAINED = "pretraining runs; with configs/suites/table2.py's rows fine-tuning, too"
BY_METRIC = "metric, backbone"


def _ablation(table: str, title: str, default: str, spots: Spots | None = None) -> Layout:
    return Layout(title, "protocol", ABLATION.format(table), spots or labelled(table), (default,))


_LAYOUTS: dict[str, Layout] = {
    "summary": Layout("Summary: pretrainings by tasks, %", "task", "any transfer", overview),
    "1a": _ablation("1a", "Table 1a: decoder depth, top-1 %", "8 blocks"),
    "1b": _ablation("1b", "Table 1b: decoder width, top-1 %", "512-d"),
    "1c": _ablation("1c", "Table 1c: mask token in the encoder, top-1 %", "encoder w/o [M]", mask_tokens),
    "1d": Layout(
        "Table 1d: reconstruction target, top-1 %", "protocol", OF_TARGETS, targets, ("pixel (w/o norm)", MAE[1])
    ),
    "1e": _ablation("1e", "Table 1e: augmentation of pretraining, top-1 %", "crop, rand size"),
    "1f": Layout(
        "Table 1f: mask sampling, top-1 %", "protocol", "the same of MAEs with several kinds of masks",
        varied(lambda one: (one.mask, one.hidden), lambda one: f"{one.mask} {one.hidden}", None), ("random 75%",),
    ),
    "2": Layout("Table 2: cost of pretraining", "cost", PRETRAINED, costs),
    "3": Layout(
        "Table 3: fine-tuning, top-1 %", "backbone", "cls_train.py with protocol finetune",
        listed(top1("finetune"), of_backbone), MAE,
    ),
    "4": Layout(
        "Table 4: COCO Mask R-CNN, AP %", BY_METRIC, "det_train.py on COCO", listed(dense("detect", AP), of_metric), MAE
    ),
    "5": Layout(
        "Table 5: ADE20K UperNet, mIoU %", "backbone", "seg_train.py on ADE20K",
        listed(dense("segment", {"mIoU": "mIoU"}), of_segmenter), MAE,
    ),
    "6": Layout(
        "Table 6: iNaturalist and Places, top-1 %", "data, backbone", "cls_train.py on those data sets",
        listed(top1("finetune"), of_data), MAE,
    ),
    "7": Layout(
        "Table 7: pixels against tokens, top-1 %, AP % and mIoU %", "data, backbone", DENSE_OF_TARGETS,
        pixels_and_tokens, (MAE[1],),
    ),
    "12": Layout(
        "Table 12: linear probing, top-1 %", "backbone", "cls_train.py with protocol linear",
        listed(top1("linear"), of_backbone), MAE,
    ),
    "13": Layout(ROBUST, "variant, backbone", "cls_train.py configs/classify/robustness.py --eval", robustness, MAE),
    "knn": Layout(
        "k-nearest neighbours, top-1 % (no table of the paper)", "k", "cls_train.py with a k-NN config",
        listed(top1("knn"), of_suffix), MAE,
    ),
    "frozen": Layout(
        "Frozen features, % (no table of the paper)", "protocol, data",
        "at least two of k-NN, probes, ridge, logistic regression and frozen dense protocols", frozen,
    ),
    "figure 5": Layout(
        "Figure 5: mask ratio, top-1 %", "hidden", OF_RATIOS,
        varied(lambda one: one.hidden, None, lambda one: one.hidden, kinds=("random",)),
    ),
    "figure 7": Layout(
        "Figure 7: length of pretraining, top-1 %", "pretraining", "the same of MAEs of several lengths",
        varied(lambda one: one.epochs, None, lambda one: f"{one.epochs} epochs", kinds=("random",)),
    ),
    "figure 9": Layout(
        "Figure 9: partial fine-tuning, top-1 %", "tuned blocks",
        "cls_train.py with protocol partial, several tune_blocks", listed(top1("partial"), of_suffix), MAE,
    ),
    "survey": Layout("Methods side by side, as published", "protocol", "classification results of any method", survey),
    "baseline": Layout("ViT-L/16 from scratch and from MAE (section 4)", "protocol", "published only", lambda _: ()),
    "coco": Layout(
        "COCO Mask R-CNN: schedules and variants", BY_METRIC, "det_train.py with 25, 50 or 100 epochs on COCO",
        listed(dense("detect", AP), of_schedule),
    ),
    "vitdet": Layout(
        "ViTDet on COCO and LVIS", BY_METRIC, "det_train.py with a vitdet config",
        listed(dense("detect", AP), partial(of_metric, protocol="vitdet")),
    ),
    "ade": Layout(
        UPERNET, BY_METRIC, "seg_train.py",
        lambda records: listed(dense("segment", IOU), of_metric)(
            [record for record in records if record.result.protocol == "upernet"]
        ),
    ),
}  # fmt: skip
LAYOUTS = {table: layout._replace(table=table) for table, layout in _LAYOUTS.items()}
