"""models/mae.py: the options of table 1, and that a new target changes no line of it."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.patches import patchify, take
from mae_transfer.interfaces import Batch, Mask, Target, ViewSpec
from mae_transfer.models.mae import CORRUPTIONS, MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets.frame import Frame
from mae_transfer.targets.pixel import NormPixelConfig, PixelConfig

ENCODER = ViTConfig(size=None, dim=32, depth=2, heads=4, patch=4, image_size=16)


def model(out: int, *, depth: int = 2, corrupt: str | None = None, kind: str = "self", **encoder: object) -> MAE:
    torch.manual_seed(0)
    cfg = {
        "encoder": ENCODER.model_dump() | encoder,
        "decoder": {"kind": kind, "depth": depth, "dim": 16, "heads": 4},
        "corrupt": corrupt,
    }
    return MAE(MAEConfig.model_validate(cfg), out)


def batch(views: tuple[ViewSpec, ...] = ()) -> Batch:
    torch.manual_seed(1)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    rendered = tuple(F.interpolate(images.float(), size=view.size).to(torch.uint8) for view in views)
    return Batch(images, rendered, Mask(order[:, :4], order[:, 4:]), None, torch.arange(3))


class ToyTokens(Target):
    """A token target as a dVAE's: the class of a patch is the eighth of grey that its mean falls into."""

    dim = 8

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        return take(patchify(batch.image, 4), ids).float().mean(dim=2).div(32).long()

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(pred.float().transpose(1, 2), target, reduction="none")

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (pred.argmax(dim=2) == target).float().mean()}

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        raise AssertionError("not drawn here")


class ToySecondView(ToyTokens):
    """A target that reads a second, smaller view of the crop: the grey of the 1 x 1 cell of a 4 x 4 view."""

    views = (ViewSpec(4, "lanczos"),)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        return take(patchify(batch.views[0], 1), ids).float().mean(dim=2).div(32).long()


@pytest.mark.parametrize(
    "target",
    [
        ToyTokens(),
        ToySecondView(),
        *(cfg().build(Frame(4, (4, 4), IMAGENET)) for cfg in (PixelConfig, NormPixelConfig)),
    ],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"kind": "cross"}, {"corrupt": "mask_token"}, {"corrupt": "mask_token", "depth": 0},
        {"corrupt": "bert", "depth": 0}],
)  # fmt: skip
def test_any_target_is_learned_without_a_change_of_the_model(target: Target, options: dict[str, object]) -> None:
    assert isinstance(target, Target)
    data, mae = batch(target.views), model(target.dim, **options)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        prediction = mae(normalize(data.image), data.mask)
        assert prediction.shape == (3, 12, target.dim)
        loss = target.loss(prediction, target(data, data.mask.ids_masked))
        assert loss.shape == (3, 12)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("options", [
    {}, {"corrupt": "mask_token"}, {"corrupt": "mask_token", "depth": 0}, {"class_token": False},
    {"positions": "none", "relative_positions": "shared", "qkv_bias": "qv", "layer_scale": 0.1,
        "corrupt": "mask_token"},
    {"relative_positions": "per_block", "positions": "learned"}, {"kind": "cross"},
    {"kind": "cross", "class_token": False, "final_norm": False},
])  # fmt: skip
def test_every_trainable_parameter_gets_a_gradient(options: dict[str, object]) -> None:
    data, mae = batch(), model(5, **options)
    mae(normalize(data.image), data.mask).square().mean().backward()
    assert [name for name, p in mae.named_parameters() if p.requires_grad and p.grad is None] == []


SHARED = [{}, {"kind": "cross"}, {"corrupt": "mask_token"}, {"corrupt": "mask_token", "depth": 0}]


@pytest.mark.parametrize("options", SHARED)
def test_predictions_do_not_see_the_hidden_pixels(options: dict[str, object]) -> None:
    data, mae = batch(), model(5, **options).eval()
    images = normalize(data.image)
    changed = images.clone()
    for b, n in itertools.chain.from_iterable(
        [(row, int(n)) for n in ids] for row, ids in enumerate(data.mask.ids_masked)
    ):
        changed[b, :, n // 4 * 4 : n // 4 * 4 + 4, n % 4 * 4 : n % 4 * 4 + 4] = 7
    assert torch.equal(mae(images, data.mask), mae(changed, data.mask))


def test_bert_shows_the_mask_token_in_8_of_10_cases_another_patch_in_one_and_the_patch_in_one() -> None:
    torch.manual_seed(0)
    b, n = 500, 36
    tokens = torch.arange(b * n, dtype=torch.float32).view(b, n, 1)  # each embedding names its image and place
    order = torch.rand(b, n).argsort(dim=1)
    mask = Mask(order[:, 18:], order[:, :18])
    seen = CORRUPTIONS["bert"](tokens, mask, torch.full((1, 1, 1), -1.0))
    assert torch.equal(take(seen, mask.ids_keep), take(tokens, mask.ids_keep))
    now, before = take(seen, mask.ids_masked), take(tokens, mask.ids_masked)
    shares = {"token": now == -1, "kept": now == before, "other": (now != -1) & (now != before)}
    assert {name: hit.float().mean().item() for name, hit in shares.items()} == {
        "token": pytest.approx(0.8, abs=0.015), "kept": pytest.approx(0.1, abs=0.01),
        "other": pytest.approx(0.1, abs=0.01)
    }  # fmt: skip
    moved = now[shares["other"]]
    assert torch.equal(moved // n, before[shares["other"]] // n)  # of the same image
    assert len((moved % n).unique()) == n


def test_the_order_of_the_ids_only_orders_the_predictions() -> None:
    data, mae = batch(), model(5).eval()
    shuffled = Mask(data.mask.ids_keep.flip(1), data.mask.ids_masked.flip(1))
    a, b = (mae(normalize(data.image), mask) for mask in (data.mask, shuffled))
    torch.testing.assert_close(a, b.flip(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", SHARED)
def test_a_share_of_the_hidden_patches_gives_their_predictions_and_gradients(options: dict[str, object]) -> None:
    data, mae = batch(), model(5, **options)
    drawn = data.mask.ids_masked[:, 3:8]
    prediction = mae(normalize(data.image), replace(data.mask, ids_drawn=drawn))
    assert prediction.shape == (3, 5, 5)
    prediction.square().mean().backward()
    assert [name for name, p in mae.named_parameters() if p.requires_grad and p.grad is None] == []
    if not options:  # the sequence of MAE's decoder has no other hidden patches: they could be visible nowhere
        without = Mask(data.mask.ids_keep, drawn)
        assert torch.equal(prediction, mae(normalize(data.image), without))


def test_all_patches_as_a_share_are_the_default_bit_for_bit() -> None:
    data, mae = batch(), model(5)
    drawn = replace(data.mask, ids_drawn=data.mask.ids_masked)
    assert torch.equal(mae(normalize(data.image), data.mask), mae(normalize(data.image), drawn))


@pytest.mark.parametrize(("decoder", "words"), [
    ({"kind": "cross", "depth": 0}, "kind = 'cross' needs blocks"),
    ({"share": 0.0}, "greater than 0"),
    ({"share": 1.5}, "less than or equal to 1"),
    ({"kind": "other"}, "'self' or 'cross'"),
])  # fmt: skip
def test_a_decoder_that_cannot_be_is_refused(decoder: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DecoderConfig.model_validate(decoder)


def test_a_share_of_no_patch_and_hidden_patches_behind_cross_attention_are_refused() -> None:
    assert [DecoderConfig(share=share).predicted(147) for share in (1.0, 1 / 3, 0.01)] == [None, 49, 1]
    with pytest.raises(ValueError, match=r"share = 0.01 predicts none of 48 hidden patches: set 0.021 or more"):
        DecoderConfig(share=0.01).predicted(48)
    with pytest.raises(ValueError, match="corrupt = 'mask_token' encodes the hidden patches"):
        model(5, corrupt="mask_token", kind="cross")


def test_a_decoder_of_depth_0_without_mask_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="needs corrupt"):
        model(5, depth=0)


def test_another_image_size_than_the_table_s_works() -> None:
    images = torch.randn(1, 3, 24, 16)
    order = torch.randperm(24)[None]
    for kind in ("self", "cross"):
        assert model(5, kind=kind)(images, Mask(order[:, :6], order[:, 6:])).shape == (1, 18, 5)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_recomputing_activations_changes_no_gradient(kind: str) -> None:
    data, gradients = batch(), []
    for recompute in (False, True):
        mae = model(5, kind=kind)
        mae.set_grad_checkpointing(recompute)
        mae(normalize(data.image), data.mask).square().mean().backward()
        gradients.append([p.grad for p in mae.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_decoder_of_the_paper_is_the_default() -> None:
    """A dump leaves out what later versions added, so that digests of older configs stay."""
    assert DecoderConfig().model_dump() == {"depth": 8, "dim": 512, "heads": 16}
    assert (DecoderConfig().kind, DecoderConfig().share) == ("self", 1.0)
    assert DecoderConfig(kind="cross", share=0.5).model_dump() == {
        "kind": "cross", "share": 0.5, "depth": 8, "dim": 512, "heads": 16
    }  # fmt: skip
