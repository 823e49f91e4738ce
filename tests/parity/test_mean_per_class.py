"""The mean per class against scikit-learn's balanced accuracy, in one pass and in parts."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from mae_transfer.metrics.accuracy import accuracies, hits, hits_by_class


@pytest.mark.parametrize("classes", [3, 8])
def test_accuracies_are_scikit_learns_and_those_of_the_hits(classes: int) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(300) ** 3 * classes).long()  # unbalanced
    scores = torch.randn(2, 300, classes) + 2 * torch.nn.functional.one_hot(labels, classes)
    found = accuracies(sum(hits_by_class(scores[:, part], labels[part]) for part in torch.arange(300).chunk(7)))
    assert list(found) == (["top1", "mean-per-class"] if classes == 3 else ["top1", "top5", "mean-per-class"])
    balanced = [balanced_accuracy_score(labels.numpy(), row.argmax(dim=1).numpy()) for row in scores]
    assert found.pop("mean-per-class") == pytest.approx(balanced, rel=1e-12)
    assert list(found.values()) == (hits(scores, labels).double() / 300).tolist()
    assert balanced != pytest.approx(found["top1"], abs=1e-3)


def test_classes_without_an_image_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.tensor([0, 0, 0, 4])
    scores = torch.nn.functional.one_hot(torch.tensor([0, 4, 0, 4]), 5).float()[None]
    assert accuracies(hits_by_class(scores, labels)) == {"top1": [0.75], "mean-per-class": [pytest.approx(5 / 6)]}
    assert "mean-per-class leaves out 3 of 5 classes, which have no image" in caplog.text
    assert balanced_accuracy_score(labels, scores[0].argmax(dim=1)) == pytest.approx(5 / 6)


def test_a_label_without_a_prediction_is_wrong_and_no_image_at_all_is_an_error() -> None:
    none = hits_by_class(torch.full((1, 2, 3), -torch.inf), torch.tensor([0, 1]))
    assert accuracies(none)["mean-per-class"] == [0.0]
    with pytest.raises(ValueError, match="no image of an evaluation set could be read"):
        accuracies(torch.zeros_like(none))
