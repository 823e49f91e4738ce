"""COCO's average precision of boxes and masks: the twelve metrics of pycocotools, or of faster-coco-eval if installed.

Both libraries give equal values. The metric is exact over ranks: predictions are gathered, and each image counts once
even if a sampler pads. Predictions are saved in COCO's result format.

Legend: n predicted objects of one image of H x W pixels. A label is the rank of its category id in the ground truth.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as td
from torch import Tensor

from mae_transfer.data.coco_rules import examine
from mae_transfer.data.reports import refuse
from mae_transfer.disk import atomic_write

Kind = Literal["bbox", "segm"]
Backend = Literal["auto", "pycocotools", "faster-coco-eval"]
Entry = dict[str, Any]
# in the order of COCOeval.stats
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COUNTED = 100  # detections per image in COCO's protocol


class Detections(NamedTuple):
    """The detections of a model in one image, in pixels of the stored image."""

    boxes: Tensor  # (n, 4) x0, y0, x1, y1
    scores: Tensor  # (n,)
    labels: Tensor  # (n,) int64 index into the classes
    masks: Sequence[Entry] | None = None  # run-length codes as in COCO's json: {size: [H, W], counts: text}


class CocoMetric:
    """Collects the predictions of a split and evaluates them.

    Args:
        ground_truth: the annotations in COCO's json format, checked by the rules of data/coco_rules.py. Missing `area`
            and `iscrowd` are filled in. The area comes from the outline if masks are evaluated, else from the box.
        kinds: "bbox" for boxes, "segm" for masks.
        backend: "auto" uses faster-coco-eval if it is installed.
        detections: maximum number of detections per image that count, at least COCO's 100.

    Raises:
        ValueError: the ground truth breaks a rule or has no object to evaluate, or the backend is not installed.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        *,
        kinds: Sequence[Kind] = ("bbox", "segm"),
        backend: Backend = "auto",
        detections: int = COUNTED,
    ) -> None:
        self.truth, self.kinds = _format_truth(ground_truth, kinds), tuple(kinds)
        self.detections = max(COUNTED, detections)
        self.categories = sorted(self.truth["categories"], key=lambda category: category["id"])
        self.backend = _choose_backend(backend)
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in self.truth["images"]}
        self._found: dict[int, list[Entry] | None] = {}  # None: left out

    def empty(self) -> CocoMetric:
        """Return a metric of the same ground truth without predictions."""
        fresh = copy.copy(self)
        fresh._found = {}
        return fresh

    def update(self, image_ids: Sequence[int], predictions: Sequence[Detections]) -> None:
        """Add the predictions of some images. Images that already have predictions are skipped.

        Raises:
            ValueError: masks are missing or differ in size from the image, or a box or score is not finite.
        """
        ids = map(index, image_ids)  # json cannot write numpy integers
        for image_id, found in zip(ids, predictions, strict=True):
            if image_id not in self._found:
                _check_detections(image_id, found, self._sizes.get(image_id), masks="segm" in self.kinds)
                self._found[image_id] = _format_entries(
                    image_id, found, [category["id"] for category in self.categories], masks="segm" in self.kinds
                )

    def leave_out(self, image_ids: Sequence[int]) -> None:
        """Remove images that could not be read, with their objects, from the ground truth."""
        self._found |= dict.fromkeys(map(index, image_ids))

    def compute(
        self, *, save: Path | None = None, per_class: bool = False, group: td.ProcessGroup | None = None
    ) -> dict[str, float]:
        """Return "bbox/AP", "segm/AP50" ... in [0, 1]. Every rank calls it and gets the same values.

        A metric without objects to define it is NaN.

        Args:
            save: a file for all predictions in COCO's result format, with the original category ids.
            per_class: also return "bbox/AP[person]" for each class.
            group: the processes that predicted, preferably a gloo group, since predictions are on the host.

        Raises:
            ValueError: predictions are missing for an image, or an image is not in the ground truth.
        """
        parts: list[Any] = [self._found]
        main, world = True, td.is_available() and td.is_initialized()
        if world:
            main = td.get_rank(group) == 0
            parts = [None] * td.get_world_size(group)
            td.gather_object(self._found, parts if main else None, group=group, group_dst=0)
        outcome: list[Any] = [None]
        if main:
            try:
                outcome = [self._evaluate(parts, save, per_class=per_class)]
            except (OSError, ValueError) as error:  # sent to the other ranks, which wait for the outcome
                outcome = [str(error)]
        if world:
            td.broadcast_object_list(outcome, group=group, group_src=0)
        if isinstance(outcome[0], str):
            raise ValueError(outcome[0])
        figures: dict[str, float] = outcome[0]
        return figures

    def _evaluate(
        self, parts: Sequence[dict[int, list[Entry] | None]], save: Path | None, *, per_class: bool
    ) -> dict[str, float] | str:
        """Return the metrics, or the message of the error that every rank raises."""
        found = {image_id: entries for part in parts for image_id, entries in part.items()}
        known = {image["id"] for image in self.truth["images"]}
        if found.keys() != known:
            missing, strange = sorted(known - found.keys()), sorted(found.keys() - known)
            return (
                f"predictions for {len(found)} images, {len(known)} in the ground truth: "
                f"{len(missing)} not predicted {missing[:3]}, {len(strange)} unknown {strange[:3]}"
            )
        entries = [entry for image_id in sorted(found) for entry in found[image_id] or ()]
        left_out = {image_id for image_id, listed in found.items() if listed is None}
        truth = {
            **self.truth,
            "images": [image for image in self.truth["images"] if image["id"] not in left_out],
            "annotations": [one for one in self.truth["annotations"] if one["image_id"] not in left_out],
        }
        if save is not None:
            _write(save, entries)
        return {
            f"{kind}/{name}": value
            for kind in self.kinds
            for name, value in self._figures(truth, kind, entries, per_class=per_class).items()
        }

    def _figures(self, truth: Entry, kind: Kind, entries: Sequence[Entry], *, per_class: bool) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):  # both libraries print their progress
            evaluator = _open_evaluator(self.backend, truth, _format_results(truth, entries, kind), kind)
            evaluator.params.maxDets = [1, 10, self.detections]
            evaluator.evaluate()
            evaluator.accumulate()
        precision, recall = (np.asarray(evaluator.eval[key]) for key in ("precision", "recall"))
        figures = _summarise(precision, recall, self.detections)
        if per_class:
            # IoU thresholds, recalls, classes; for all areas and the most detections
            of_classes = precision[:, :, :, 0, -1].mean(axis=(0, 1))
            names = [f"AP[{category['name']}]" for category in self.categories]
            figures |= dict(zip(names, _minus_one_to_nan(of_classes), strict=True))
        return figures


def _minus_one_to_nan(values: np.ndarray) -> list[float]:
    """Replace COCO's -1 for "no object of this kind" by NaN, which cannot be mistaken for a result."""
    defined: list[float] = np.where(values < 0, np.nan, values).tolist()
    return defined


def _summarise(precision: np.ndarray, recall: np.ndarray, detections: int) -> dict[str, float]:
    """Return COCO's metrics as `summarize` does, for any number of detections.

    Args:
        precision: (T, R, K, A, M) at T IoU thresholds from 0.50 in steps of 0.05, R recalls, K classes, A areas (all,
            small, medium, large), M = 3 numbers of detections (1, 10 and `detections`).
        recall: (T, K, A, M).
        detections: largest number of detections per image.
    """
    all_, small, medium, large = (precision[..., area, -1] for area in range(4))
    precisions = (all_, all_[0], all_[5], small, medium, large)
    parts = [*precisions, recall[..., 0, 0], recall[..., 0, 1], *(recall[..., area, -1] for area in range(4))]
    names = [f"AR{detections}" if name == "AR100" else name for name in FIGURES]
    return {
        name: float(part[part > -1].mean()) if (part > -1).any() else float("nan")
        for name, part in zip(names, parts, strict=True)
    }


def _format_truth(truth: Mapping[str, Any], kinds: Sequence[Kind]) -> Entry:
    """Return the ground truth in COCOeval's form. Ids start at 1, because COCOeval uses 0 for "no match"."""
    masks = "segm" in kinds
    found = examine(truth, masks=masks)
    refuse(found.defects, where="the ground truth")
    sizes = {image["id"]: (image["height"], image["width"]) for image in found.images}
    objects = []
    for k, one in enumerate(found.objects, start=1):
        kept = {key: one[key] for key in ("image_id", "category_id", "bbox", *(("segmentation",) if masks else ()))}
        area = one.get("area")
        if area is None and masks:
            area = _count_pixels(one["segmentation"], sizes[one["image_id"]])
        elif area is None:
            area = one["bbox"][2] * one["bbox"][3]
        objects.append({"id": k, **kept, "area": area, "iscrowd": int(one.get("iscrowd", 0))})
    images = [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in found.images]
    return {"info": {}, "images": images, "categories": found.categories, "annotations": objects}


def _count_pixels(outline: Any, size: tuple[int, int]) -> int:
    """Return the area of an outline's mask in an image of `size` (H, W)."""
    from pycocotools import mask

    compressed = isinstance(outline, dict) and isinstance(outline["counts"], str)
    code = outline if compressed else mask.frPyObjects(outline, *size)
    return int(mask.area(mask.merge(code) if isinstance(code, list) else code))


def _check_detections(image_id: int, found: Detections, size: tuple[int, int] | None, *, masks: bool) -> None:
    """Raise ValueError for predictions that COCOeval would silently evaluate wrongly; size: the ground truth's H, W."""
    if masks and found.masks is None:
        raise ValueError(f"image {image_id}: predictions have no masks; evaluate boxes only, with kinds=('bbox',)")
    strange = [code["size"] for code in found.masks or () if masks and size is not None and tuple(code["size"]) != size]
    if strange:
        raise ValueError(
            f"image {image_id}: masks have the size {tuple(strange[0])}, but the image has {size} (H, W): paste them "
            "into the stored image"
        )
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise ValueError(f"image {image_id}: predicted boxes or scores are not finite")


def _format_entries(image_id: int, found: Detections, categories: Sequence[int], *, masks: bool) -> list[Entry]:
    """Return the predictions of one image in COCO's result format."""
    boxes, scores, labels = (
        values.detach().cpu() for values in (found.boxes.double(), found.scores.double(), found.labels)
    )
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    entries: list[Entry] = [
        {"image_id": image_id, "category_id": categories[label], "bbox": box, "score": score}
        for label, box, score in zip(labels.tolist(), boxes.tolist(), scores.tolist(), strict=True)
    ]
    if masks and found.masks is not None:
        for entry, code in zip(entries, found.masks, strict=True):
            entry["segmentation"] = code
    return entries


def _format_results(truth: Entry, entries: Sequence[Entry], kind: Kind) -> Entry:
    """Return predictions in the form that COCOeval reads. The area is that of box or mask, by kind (COCO.loadRes)."""
    from pycocotools import mask

    # one by one, because pycocotools 2.0.11 fails for the areas of a list of more than 255 codes
    found = [
        {
            **entry,
            "id": k,
            "iscrowd": 0,
            "area": mask.area(entry["segmentation"]) if kind == "segm" else entry["bbox"][2] * entry["bbox"][3],
        }
        for k, entry in enumerate(entries, start=1)
    ]
    return {**truth, "annotations": found}


def _open_evaluator(backend: Backend, truth: Entry, found: Entry, kind: Kind) -> Any:
    """Return the library's COCOeval of predictions. It gets copies, because pycocotools modifies the annotations."""
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    sets = COCO(), COCO()
    for one, content in zip(sets, (truth, found), strict=True):
        one.dataset = {**content, "annotations": [dict(entry) for entry in content["annotations"]]}
        one.createIndex()
    return COCOeval(*sets, iouType=kind)


def _choose_backend(wanted: Backend) -> Backend:
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if wanted == "faster-coco-eval" and not installed:
        raise ValueError(
            "faster-coco-eval is not installed: pip install -e '.[fast]', or set backend='pycocotools' (equal values)"
        )
    return wanted if wanted != "auto" else "faster-coco-eval" if installed else "pycocotools"


def _write(path: Path, entries: Sequence[Entry]) -> None:
    """Write the predictions under a temporary name, then rename the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(list(entries), file)
