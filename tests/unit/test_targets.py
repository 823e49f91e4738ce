"""targets/: each against a loop over patches, and what decode draws."""

import pytest
import torch

from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.patches import patchify, take
from mae_transfer.interfaces import Batch
from mae_transfer.targets import Frame, NormPixelConfig, PixelConfig
from mae_transfer.targets.pixel import PixelLossConfig


def batch() -> tuple[Batch, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    return Batch(images, (), None, None, torch.arange(2)), torch.tensor([[0, 5, 3], [2, 1, 4]])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_target_and_loss_equal_a_loop_over_patches(norm: bool, loss: str) -> None:
    data, ids = batch()
    target = (NormPixelConfig if norm else PixelConfig)(loss=loss).build(Frame(4, (2, 3), IMAGENET))
    pred = torch.randn(2, 3, 48, dtype=torch.bfloat16)
    values = target(data, ids)
    got = target.loss(pred, values)
    pixels = normalize(data.image)
    for b in range(2):
        for m in range(3):
            row, column = divmod(int(ids[b, m]), 3)
            x = pixels[b, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].permute(1, 2, 0).flatten()
            if norm:
                x = (x - x.mean()) / (((x - x.mean()) ** 2).sum() / 47 + 1e-6) ** 0.5
            torch.testing.assert_close(values[b, m], x)
            error = pred[b, m].float() - x
            torch.testing.assert_close(got[b, m], error.square().mean() if loss == "l2" else error.abs().mean())
    assert got.dtype == torch.float32


@pytest.mark.parametrize("cfg", [PixelConfig(), NormPixelConfig()], ids=lambda cfg: cfg.name)
def test_decoding_the_truth_draws_the_image_and_grey_elsewhere(cfg: PixelLossConfig) -> None:
    data, ids = batch()
    target = cfg.build(Frame(4, (2, 3), IMAGENET))
    drawn = patchify(target.decode(target(data, ids), data, ids), 4)
    torch.testing.assert_close(take(drawn, ids), take(patchify(data.image, 4), ids) / 255, atol=2e-5, rtol=0)
    others = torch.tensor([[1, 2, 4], [0, 3, 5]])
    assert (take(drawn, others) == 0.5).all()


def test_a_flat_patch_has_a_finite_target() -> None:
    data = Batch(torch.full((1, 3, 4, 4), 9, dtype=torch.uint8), (), None, None, torch.arange(1))
    grey = IMAGENET._replace(mean=(0.5,) * 3, std=(0.5,) * 3)
    values = NormPixelConfig().build(Frame(4, (1, 1), grey))(data, torch.zeros(1, 1, dtype=torch.int64))
    assert values.isfinite().all()
    assert values.abs().max() < 1e-3
