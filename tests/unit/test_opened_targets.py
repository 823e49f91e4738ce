"""targets/token.py and feature.py: requirements on tokenizer and teacher, and errors."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.normalize import IMAGENET, Statistics, normalize
from mae_transfer.core.patches import patchify, take
from mae_transfer.interfaces import Batch, ImageTokenizer, Target, ViewSpec
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.targets import Feature, FeatureConfig, Frame, Teacher, Token, TokenConfig

FRAME = Frame(4, (4, 4), IMAGENET)
HALF = Statistics((0.5,) * 3, (0.25,) * 3)
IDS = torch.tensor([[0, 7, 15, 2], [5, 4, 1, 3]])


class Grey(ImageTokenizer):
    """A tokenizer with 8 grey levels and cells of 2 x 2 pixels."""

    codes, stride = 8, 2

    def forward(self, view: Tensor) -> Tensor:
        return (F.avg_pool2d(view.float(), self.stride).mean(dim=1) / 32).long()

    def decode(self, codes: Tensor) -> Tensor:
        return ((codes[:, None] + 0.5) / 8).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


def batch(view: int = 8) -> Batch:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    return Batch(images, (torch.randint(0, 256, (2, 3, view, view), dtype=torch.uint8),), None, None, torch.arange(2))


def vit(patch: int = 4) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(size=None, dim=16, depth=2, heads=2, patch=patch, image_size=16)).eval()


def test_tokens_are_those_of_the_tokenizers_own_view() -> None:
    target, data = Token(FRAME, Grey(), TokenConfig(tokenizer="given")), batch()
    assert isinstance(target, Target)
    assert target.views == (ViewSpec(8, "lanczos"),)  # 4 x 4 patches at stride 2
    codes = target(data, IDS)
    for b in range(2):
        for m in range(4):
            row, column = divmod(int(IDS[b, m]), 4)
            assert codes[b, m] == int(
                data.views[0][b, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].float().mean() // 32
            )
    scores = torch.randn(2, 4, 8, dtype=torch.bfloat16)
    loss = target.loss(scores, codes)
    assert loss.dtype == torch.float32
    for b in range(2):
        for m in range(4):
            torch.testing.assert_close(loss[b, m], -scores[b, m].float().log_softmax(dim=0)[codes[b, m]])


def test_token_metrics_are_accuracy_perplexity_and_the_share_of_codes_in_use() -> None:
    target = Token(FRAME, Grey(), TokenConfig(tokenizer="given"))
    truth = torch.tensor([[1, 1, 2, 5]])
    scores = F.one_hot(torch.tensor([[1, 2, 2, 5]]), 8).float() * 50
    found = target.metrics(scores, truth)
    assert {name: value.item() for name, value in found.items()} == {
        "accuracy": 0.75, "perplexity": pytest.approx(math.exp(50 / 4), rel=1e-3), "classes_used": 3 / 8
    }  # fmt: skip


def test_predicted_tokens_are_decoded_among_true_ones_and_only_they_are_shown() -> None:
    target, data = Token(FRAME, Grey(), TokenConfig(tokenizer="given")), batch()
    codes = target(data, IDS)
    drawn = target.decode(F.one_hot(codes, 8).float(), data, IDS)
    assert drawn.shape == (2, 3, 16, 16)
    whole = F.interpolate(Grey().decode(Grey()(data.views[0])), size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(take(patchify(drawn, 4), IDS), take(patchify(whole, 4), IDS))
    assert (take(patchify(drawn, 4), torch.tensor([[1], [0]])) == 0.5).all()


def test_cached_tokens_come_with_the_image_and_need_no_view() -> None:
    target = Token(FRAME, Grey(), TokenConfig(tokenizer="given", cache="codes"))
    assert target.views == ()
    codes = torch.randint(0, 8, (2, 16))
    assert torch.equal(target(replace(batch(), label=codes), IDS), codes.gather(1, IDS))


def test_a_tokenizer_that_does_not_fit_the_grid_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"gives 5 x 5 codes for a view of 8 px, but the encoder has 4 x 4 patches"):
        Token(FRAME, Grey(), TokenConfig(tokenizer="given"))(batch(view=10), IDS)


def test_tokens_and_features_of_images_that_are_not_square() -> None:
    torch.manual_seed(0)
    frame, images = Frame(4, (4, 6), IMAGENET), torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    view, ids = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8), torch.tensor([[0, 7, 23], [6, 5, 22]])
    target = Token(frame, Grey(), TokenConfig(tokenizer="given"))
    assert target.views == (ViewSpec((8, 12), "lanczos"),)
    codes = target(Batch(images, (view,), None, None, torch.arange(2)), ids)
    assert codes[0, 1] == int(
        view[0, :, 2:4, 2:4].float().mean() // 32
    )  # patch 7 of a 4 x 6 grid: second row, second column
    assert codes[1, 2] == int(view[1, :, 6:8, 8:10].float().mean() // 32)
    teacher = vit()
    own = Feature(frame, Teacher(teacher, HALF), FeatureConfig(teacher="given", size=(32, 48)))
    assert own.views == (ViewSpec((32, 48), "bicubic"),)
    features = Feature(frame, Teacher(teacher, HALF), FeatureConfig(teacher="given", scale="none"))(
        Batch(images, (), None, None, torch.arange(2)), ids
    )
    expected = teacher(normalize(images, HALF), norm=True).maps[-1]
    torch.testing.assert_close(features[0, 1], expected[0, :, 1, 1])
    with pytest.raises(ValueError, match=r"target.size = 32 must have the aspect ratio of the encoder's 16 x 24 px"):
        Feature(frame, Teacher(teacher, HALF), FeatureConfig(teacher="given", size=32))


@pytest.mark.parametrize("scale", ["layer", "unit", "none"])
def test_features_are_the_teachers_last_map_after_its_norm_with_its_own_statistics(scale: str) -> None:
    teacher, data = vit(), batch()
    target = Feature(FRAME, Teacher(teacher, HALF), FeatureConfig(teacher="given", scale=scale))
    assert isinstance(target, Target)
    assert target.dim == 16
    expected = teacher(normalize(data.image, HALF), norm=True).maps[-1].flatten(2).transpose(1, 2)
    if scale == "layer":
        expected = (expected - expected.mean(dim=2, keepdim=True)) / (
            expected.var(dim=2, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
    if scale == "unit":
        expected = expected / expected.norm(dim=2, keepdim=True)
    found = target(data, IDS)
    torch.testing.assert_close(found, take(expected, IDS))
    assert not found.requires_grad
    assert not any(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize("loss", ["smooth_l1", "cosine"])
def test_feature_losses_equal_a_loop_over_patches(loss: str) -> None:
    target = Feature(FRAME, Teacher(vit(), HALF), FeatureConfig(teacher="given", loss=loss))
    truth, pred = target(batch(), IDS), torch.randn(2, 4, 16, dtype=torch.bfloat16)
    found = target.loss(pred, truth)
    for b in range(2):
        for m in range(4):
            p, t = pred[b, m].float(), truth[b, m]
            error = (p - t).abs()
            expected = (
                torch.where(error < 1, error**2 / 2, error - 0.5).mean()
                if loss == "smooth_l1"
                else 1 - p @ t / (p.norm() * t.norm())
            )
            torch.testing.assert_close(found[b, m], expected)


def test_a_teachers_other_grid_is_resized_and_one_that_does_not_divide_needs_a_view() -> None:
    coarse = Feature(FRAME, Teacher(vit(patch=8), HALF), FeatureConfig(teacher="given"))
    assert coarse(batch(), IDS).shape == (2, 4, 16)
    with pytest.raises(ValueError, match=r"patches of 5 px do not divide the encoder's 16 x 16 px.*target.size = 20"):
        Feature(
            FRAME,
            Teacher(ViT(ViTConfig(size=None, dim=16, depth=1, heads=2, patch=5, image_size=20)), HALF),
            FeatureConfig(teacher="given"),
        )
    own = Feature(FRAME, Teacher(vit(), HALF), FeatureConfig(teacher="given", size=32))
    assert own.views == (ViewSpec(32, "bicubic"),)
    assert own(batch(view=32), IDS).shape == (2, 4, 16)


def test_a_teacher_stays_in_evaluation_mode_and_true_features_draw_in_three_colours() -> None:
    target, data = Feature(FRAME, Teacher(vit(), HALF), FeatureConfig(teacher="given")), batch()
    target.train()
    assert not target.teacher.training
    everywhere = torch.arange(16).expand(2, -1)
    drawn = target.decode(target(data, everywhere), data, everywhere)
    assert drawn.amin() == 0
    assert drawn.amax() == 1
    assert len(patchify(drawn, 4)[0, 0].view(16, 3).unique(dim=0)) == 1  # a patch is one colour
