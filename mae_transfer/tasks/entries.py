"""The tasks that a config can name, by the tool that runs them. The command line and suites read them here."""

from __future__ import annotations

from typing import NamedTuple


class TaskEntry(NamedTuple):
    """A task. Each part is "module:attribute" in mae_transfer.tasks, imported when it is needed."""

    schema: str
    run: str | None  # (cfg, work_dir, resume=...); None: it only evaluates
    evaluate: str | None = None  # (cfg, checkpoint, work_dir or None); None: it has no training state


PRETRAIN = {
    "pretrain": TaskEntry("pretrain:PretrainConfig", "pretrain:Pretrain.launch"),
    "joint": TaskEntry("joint:JointConfig", "joint:JointEmbedding.launch"),
}
"""Of tools/pretrain.py. A config without `task` has the first one, here and below."""
CLASSIFY = {
    "classify": TaskEntry(
        "classify:ClassifyConfig", "classify:Classify.launch", "classify:Classify.evaluate_checkpoint"
    ),
    "knn": TaskEntry("knn:KnnConfig", "evaluation:Evaluation.launch"),
    "ridge": TaskEntry("ridge:RidgeConfig", "evaluation:Evaluation.launch"),
    "logreg": TaskEntry("logreg:LogRegConfig", "evaluation:Evaluation.launch"),
    "statistics": TaskEntry("statistics:StatisticsConfig", "statistics:StatisticsRun.launch"),
    "robustness": TaskEntry("robustness:RobustnessConfig", None, "robustness:Robustness.evaluate_checkpoint"),
}
"""Of tools/cls_train.py."""
DETECT = {"detect": TaskEntry("detect:DetectConfig", "detect:Detect.launch", "detect:Detect.evaluate_checkpoint")}
"""Of tools/det_train.py."""
SEGMENT = {
    "segment": TaskEntry("segment:SegmentConfig", "segment:Segment.launch", "segment:Segment.evaluate_checkpoint"),
    "frozen-knn": TaskEntry("frozen_segment:FrozenKnnConfig", "frozen_segment:FrozenSegment.launch"),
    "frozen-logreg": TaskEntry("frozen_segment:FrozenLogRegConfig", "frozen_segment:FrozenSegment.launch"),
}
"""Of tools/seg_train.py."""
