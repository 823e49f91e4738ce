"""A training step never waits for the device. Code that reads values on the host is listed here, outside of steps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Protocol

STEP_FOLDERS = {"core", "targets", "objectives", "models", "adapters", "metrics", "engine", "tasks"}
METHODS = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize", "masked_select"}
CASTS = {"float", "int", "bool"}

# (file under mae_transfer/, function): what runs outside the step, or casts what was never a tensor.
ALLOWED = {
    ("adapters/mmseg_transforms.py", "_factor"),  # of sizes
    ("adapters/mmseg_transforms.py", "_to_bgr"),  # of images, in the loader's workers
    ("core/runs.py", "_draw_in_boxes"),  # of boxes, in an evaluation
    ("core/runs.py", "from_masks"),  # of generated masks, in the loader's workers
    ("core/runs.py", "select_pixels"),  # the same
    ("core/runs.py", "to_counts"),  # of masks, in an evaluation
    ("engine/checkpoint.py", "_steps"),  # of a file name
    ("engine/dist.py", "read_mean"),  # the one place that logs and saves read through
    ("engine/dist.py", "session"),  # of environment variables
    ("core/normalize.py", "check_statistics"),  # of statistics that are read
    ("engine/interrupt.py", "poll"),  # of flags that live on the CPU: gloo agrees on them aside of the device
    ("engine/state.py", "resume"),  # of a checkpoint, before the first step
    ("engine/log.py", "_raise_if"),  # of a run that stops
    ("metrics/coco.py", "_format_truth"),  # of annotations
    ("metrics/accuracy.py", "accuracies"),  # of counts, after an evaluation
    ("metrics/coco.py", "_minus_one_to_nan"),  # of figures, after an evaluation
    ("metrics/coco.py", "_format_entries"),  # of predictions
    ("metrics/coco.py", "_count_pixels"),  # of annotations
    ("metrics/coco.py", "_summarise"),  # of figures, after an evaluation
    ("metrics/iou.py", "_figures"),  # of counts, after an evaluation
    ("metrics/iou.py", "compute"),  # the same
    ("metrics/features.py", "check_finite"),  # of how many features are broken, in an evaluation
    ("metrics/features.py", "widen"),  # in an evaluation
    ("metrics/logreg.py", "_minimise"),  # of slopes, in an evaluation
    ("metrics/logreg.py", "fit_logreg"),  # of values of the objective, in an evaluation
    ("models/heads.py", "of"),  # of a name
    (
        "models/mask_rcnn.py",
        "indices",
    ),  # of what is positive: the heads' shapes depend on it, as in every detector of this kind
    ("models/image_gpt.py", "layer_of"),  # of a parameter's name
    ("models/vit.py", "layer_of"),  # of a parameter's name
    ("objectives/distill.py", "timed"),  # of a share in a config
    ("tasks/backbones.py", "flops_of"),  # of a counter, after the run
    ("tasks/basis.py", "fit"),  # of a basis, which is fitted before anything trains
    ("tasks/choice.py", "choose"),  # of held-out accuracies, in an evaluation
    ("tasks/choice.py", "hold_out"),  # of labels, in an evaluation
    ("tasks/detect.py", "draw"),  # after the run
    ("tasks/detect.py", "encoded"),  # of ids, in an evaluation
    ("tasks/detect.py", "figures"),  # of ids, in an evaluation
    ("tasks/features.py", "pooled_features"),  # of features that are written to disk
    ("tasks/features.py", "_note_unread"),  # of indices of numpy
    ("tasks/features.py", "read"),  # of the path of an image, in the loader
    ("tasks/features.py", "digest_of_module"),  # of weights, before the first step
    ("tasks/frozen_segment.py", "kept"),  # of what is kept on disk, in an evaluation
    ("tasks/frozen_segment.py", "draw"),  # of ids, in an evaluation
    ("tasks/frozen_segment.py", "draw_patches"),  # of labels, in an evaluation
    ("tasks/logreg.py", "draw_shots"),  # of labels, in an evaluation
    ("tasks/monitor.py", "_attention"),  # of images on the host, in an evaluation
    ("tasks/pretrain.py", "training_flops"),  # of a counter, after the run
    ("tasks/pretrain.py", "results"),  # of the config, after the run
    ("tasks/segment.py", "draw_segmentation"),  # after the run
    ("tasks/targets.py", "basis"),  # of a reference
    ("tasks/trial.py", "_fits"),  # of a flag on the CPU, between the trials before a run
    ("engine/profile.py", "matmul_peak"),  # before the first step
    ("engine/checkpoint.py", "on_host"),  # of the state, to save it
}


class Source(Protocol):
    path: str
    part: str
    text: str
    tree: ast.Module


class Finder(ast.NodeVisitor):
    """Collects (function, line, text) of every expression that may read a tensor's value on the host."""

    def __init__(self) -> None:
        self.function = "<module>"
        self.found: list[tuple[str, int, str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "__init__":  # what is built before the first step may compute with numbers
            return
        outer, self.function = self.function, node.name if self.function == "<module>" else self.function
        self.generic_visit(node)
        self.function = outer

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        method = isinstance(node.func, ast.Attribute) and (
            called in METHODS or (called == "where" and len(node.args) == 1)
        )
        cast = (
            isinstance(node.func, ast.Name)
            and called in CASTS
            and not isinstance(node.args[0] if node.args else None, ast.Constant)
        )
        if method or cast or "cpu" in [ast.unparse(argument).strip("'") for argument in node.args if called == "to"]:
            self.add(node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if any(
            isinstance(part, ast.Compare)
            or (isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Invert | ast.Not))
            for part in parts
        ):
            self.add(node)
        self.generic_visit(node)

    def add(self, node: ast.expr) -> None:
        self.found.append((self.function, node.lineno, ast.unparse(node)))


def syncs(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    finder = Finder()
    finder.visit(tree)
    yield from finder.found


def handles_tensors(source: Source) -> bool:
    return source.part in STEP_FOLDERS and re.search(r"^(?:import|from) torch\b", source.text, re.MULTILINE) is not None


def test_the_finder_sees_every_way_of_reading_a_tensor():
    ways = [
        "x.item()",
        "x.cpu()",
        "x.to('cpu')",
        "x.tolist()",
        "x.numpy()",
        "float(x.sum())",
        "int(x)",
        "x[x > 0]",
        "x[~mask]",
        "x[0, y != 1]",
        "torch.where(x)",
    ]
    assert [text for way in ways for _, _, text in syncs(ast.parse(way))] == ways
    assert not [*syncs(ast.parse("float('inf'); x.to(device); x[0, 1:]; x.float(); x[index]"))]


def test_nothing_on_the_way_of_a_step_reads_a_tensor(package):
    wrong = [
        f"{source.path}:{line} {function}: {text}"
        for source in package
        if handles_tensors(source)
        for function, line, text in syncs(source.tree)
        if (source.path.removeprefix("mae_transfer/"), function) not in ALLOWED
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_allowed_still_exists(package):
    present = {
        (source.path.removeprefix("mae_transfer/"), function)
        for source in package
        if handles_tensors(source)
        for function, _, _ in syncs(source.tree)
    }
    assert not ALLOWED - present


def test_no_step_is_excused():
    assert not [entry for entry in ALLOWED if entry[1] in {"step_fn", "forward", "loss", "__call__"}]
