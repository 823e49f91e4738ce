"""Label fractions, hold-outs, and top-k accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mae_transfer.data import FolderConfig, LabelledDataConfig, Sample, Subset, open_labelled, split
from mae_transfer.metrics.accuracy import hits, top_ks


class Counted:
    """Sample i has label i % classes; its image is never needed."""

    def __init__(self, length: int, classes: int) -> None:
        self.length, self.classes = length, tuple(f"c{i}" for i in range(classes))

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        return Sample(torch.full((3, 2, 2), index, dtype=torch.uint8), index % len(self.classes))

    def labels(self) -> np.ndarray:
        return np.arange(self.length) % len(self.classes)

    def where(self, index: int) -> str:
        return f"sample {index}"


def counts(subset: Subset) -> list[int]:
    return np.bincount(subset.indices % 4, minlength=4).tolist()


def test_fractions_are_taken_per_class_and_are_nested() -> None:
    source = Counted(400, 4)
    small, large = (split(source, label_fraction=fraction).train for fraction in (0.01, 0.1))
    assert counts(small) == [1] * 4
    assert counts(large) == [10] * 4
    assert set(small.indices) < set(large.indices)
    assert split(source, label_fraction=0.1).train.indices.tolist() == large.indices.tolist()


def test_the_hold_out_is_disjoint_from_training_and_uses_only_allowed_labels() -> None:
    source = Counted(400, 4)
    parts = split(source, label_fraction=0.1, holdout_fraction=0.2)
    assert counts(parts.held_out) == [2] * 4
    assert counts(parts.train) == [8] * 4
    assert set(parts.train.indices) | set(parts.held_out.indices) == set(
        split(source, label_fraction=0.1).train.indices
    )
    assert not set(parts.train.indices) & set(parts.held_out.indices)


def test_a_class_of_one_image_keeps_it_for_training() -> None:
    parts = split(Counted(5, 4), holdout_fraction=0.5)
    assert counts(parts.train) == [1] * 4
    assert counts(parts.held_out) == [1, 0, 0, 0]


def test_a_hold_out_that_would_be_empty_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        ValueError,
        match=r"no image can be held out .*label_fraction=0\.01 keeps one .* raise data\.label_fraction, or set data",
    ):
        split(Counted(300, 3), label_fraction=0.01, holdout_fraction=0.1)
    assert split(Counted(300, 3), label_fraction=0.01).held_out is None


def test_a_label_outside_the_classes_is_refused_by_the_samples_name() -> None:
    source = Counted(8, 4)
    source.classes = ("a", "b", "c")
    source.read = lambda index: Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match=r"sample 5 has label 3, but the 3 classes are 0\.\.2"):
        split(source).train.read(5)


def config(root: Path, **changes: object) -> LabelledDataConfig:
    specs = {"train": {"name": "folder", "split": "train"}, "val": {"name": "folder", "split": "val"}}
    return LabelledDataConfig.model_validate({"root": str(root), **specs, **changes})


def test_a_class_that_the_validation_set_lacks_is_named(image_folder: Path) -> None:
    for path in (image_folder / "val" / "n02").iterdir():
        path.unlink()
    (image_folder / "val" / "n02").rmdir()
    with pytest.raises(ValueError, match=r"training set has 3 classes, validation set 2; only one set has \['n02'\]"):
        open_labelled(config(image_folder))


def test_unlabelled_or_missing_sets_are_refused(image_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.val is not set: set it to a validation set"):
        open_labelled(config(image_folder, val=None))
    with pytest.raises(ValueError, match="training set has no classes"):
        open_labelled(config(image_folder, train={"name": "folder", "split": "train", "labelled": False}))


def test_a_folder_lists_its_labels_without_reading_an_image(image_folder: Path) -> None:
    assert FolderConfig(root=str(image_folder), split="train").open().labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_hits_count_the_best_and_the_best_five_of_every_row() -> None:
    scores = torch.stack([torch.eye(8)[:4] + torch.arange(8) * 0.01, -torch.eye(8)[:4]])  # (2, 4, 8)
    found = hits(scores, torch.arange(4))
    assert found.tolist() == [[4, 0], [4, 0]]
    late = hits(torch.arange(8.0).repeat(4, 1), torch.tensor([7, 3, 2, 6]))
    assert late.tolist() == [1, 3]


def test_the_first_class_wins_among_equal_scores() -> None:
    """topk orders ties differently by device. 8 equal scores give a top-1 hit for class 0 only, and five top-5 hits."""
    assert hits(torch.zeros(8, 8), torch.arange(8)).tolist() == [1, 5]
    torch.manual_seed(0)
    scores, labels = torch.randint(0, 3, (200, 8)).bfloat16(), torch.randint(0, 8, (200,))
    stable = scores.sort(dim=1, descending=True, stable=True).indices == labels[:, None]
    assert hits(scores, labels).tolist() == [int(stable[:, :k].sum()) for k in (1, 5)]


def test_nan_and_minus_infinity_are_never_correct() -> None:
    nan, no = float("nan"), -float("inf")
    scores = torch.tensor([[nan] * 8, [no] * 8, [1.0, nan, *[no] * 6], [1.0, nan, *[no] * 6], [no, no, 1.0, *[no] * 5]])
    assert hits(scores, torch.tensor([0, 0, 1, 0, 2])).tolist() == [1, 2]


def test_top_five_is_left_out_with_few_classes() -> None:
    assert [top_ks(classes) for classes in (1, 2, 5, 6)] == [(1,), (1,), (1,), (1, 5)]
