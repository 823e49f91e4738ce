"""targets/: the contract of interfaces.Target for every target."""

import pytest
import torch
from torch import Tensor, nn

from mae_transfer.arithmetic import float32_products
from mae_transfer.config import members
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.core.patches import patchify, take
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Batch, Target
from mae_transfer.models.dvae import DVAEConfig, DVAETokenizer, decoder, encoder, map_pixels
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.targets import AnyTarget, Frame, Teacher, Token

FRAME = Frame(8, (4, 4), IMAGENET)
IDS, OTHERS = torch.tensor([[0, 7, 15, 2], [5, 4, 1, 3]]), torch.tensor([[1, 3, 4], [0, 2, 15]])


class Linear(nn.Module):
    """A tokenizer with one weight and cells of 4 x 4 pixels."""

    codes, stride = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, self.codes, kernel_size=4, stride=4)

    def forward(self, view: Tensor) -> Tensor:
        codes: Tensor = self.score(view.float()).argmax(dim=1)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        return (codes[:, None] / self.codes).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def basis() -> Basis:
    rows, ones = torch.linalg.qr(torch.randn(192, 5)).Q.T.float().contiguous(), torch.ones(5, dtype=torch.float32)
    return Basis(torch.zeros(192, dtype=torch.float32), rows, ones, ones / 192, 8, IMAGENET)


def teacher() -> Teacher:
    return Teacher(ViT(ViTConfig(size=None, dim=16, depth=1, heads=2, patch=8, image_size=32)), IMAGENET)


class Given:
    """What the references of a target stand for."""

    def basis(self, reference: str) -> Basis:
        return basis()

    def tokenizer(self, reference: str) -> Linear:
        return Linear()

    def teacher(self, reference: str) -> Teacher:
        return teacher()


TARGETS = members(AnyTarget)


def build(name: str) -> tuple[Target, Batch]:
    torch.manual_seed(0)
    cfg = TARGETS[name](
        **{role: "given" for role in ("basis", "tokenizer", "teacher") if role in TARGETS[name].model_fields}
    )
    target = cfg.build(FRAME, Given())
    views = tuple(torch.randint(0, 256, (2, 3, view.size, view.size), dtype=torch.uint8) for view in target.views)
    return target, Batch(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), views, None, None, torch.arange(2))


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_reach_the_prediction_but_not_the_target(name: str) -> None:
    target, batch = build(name)
    assert isinstance(target, Target)
    truth = target(batch, IDS)
    assert truth.shape[:2] == IDS.shape
    assert not truth.requires_grad
    pred = torch.randn(2, 4, target.dim, dtype=torch.bfloat16, requires_grad=True)
    loss = target.loss(pred, truth)
    assert (loss.shape, loss.dtype) == (IDS.shape, torch.float32)
    loss.sum().backward()
    assert pred.grad is not None
    assert pred.grad.abs().sum() > 0
    assert isinstance(target, nn.Module)
    assert all(parameter.grad is None for parameter in target.parameters())
    assert all(value.ndim == 0 for value in target.metrics(pred.detach(), truth).values())


@pytest.mark.parametrize("name", TARGETS)
def test_a_prediction_is_drawn_in_its_patches_and_grey_elsewhere(name: str) -> None:
    target, batch = build(name)
    drawn = target.decode(torch.randn(2, 4, target.dim, dtype=torch.bfloat16), batch, IDS)
    assert drawn.shape == batch.image.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert (take(patchify(drawn, 8), OTHERS) == 0.5).all()
    assert (take(patchify(drawn, 8), IDS) != 0.5).any()


@pytest.mark.parametrize("name", TARGETS)
def test_all_tensors_of_a_target_move_with_it(name: str) -> None:
    target, _ = build(name)
    assert isinstance(target, nn.Module)
    assert not [
        value for module in target.modules() for value in vars(module).values() if isinstance(value, Tensor)
    ]  # would stay behind
    target.to("meta")
    assert {tensor.device.type for tensor in (*target.parameters(), *target.buffers())} <= {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_the_same_inside_autocast_and_outside(name: str, dtype: torch.dtype) -> None:
    target, batch = build(name)
    plain = target(batch, IDS)
    with torch.autocast("cpu", dtype):
        inside = target(batch, IDS)
        assert torch.equal(inside, plain)
        assert inside.dtype == plain.dtype
        pred = torch.randn(2, 4, target.dim, dtype=dtype)
        losses, metrics = target.loss(pred, inside), target.metrics(pred, inside)
        if name == "feature":  # what a bare call would have made of it; of codes see the next test
            assert not torch.equal(target.forward(batch, IDS), plain)
    assert torch.equal(losses, target.loss(pred, plain)), "the distance is float32, too"
    assert all(torch.equal(value, metrics[name]) for name, value in target.metrics(pred, plain).items())


def test_a_tokenizers_codes_and_pictures_are_the_same_inside_autocast_and_outside() -> None:
    """So a cache of codes, an evaluation and a picture agree with a training step."""
    torch.manual_seed(0)
    cfg = DVAEConfig(codes=8192, groups=2, blocks=1, width=8, decoder_input=8)
    tokenizer, view = (
        DVAETokenizer(cfg, encoder(cfg), decoder(cfg)),
        torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),
    )
    codes = tokenizer(view)
    drawn = tokenizer.decode(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer(view), codes)
        assert torch.equal(tokenizer.decode(codes), drawn)
        bare = tokenizer.encoder(map_pixels(view)).argmax(dim=1)
    assert (bare != codes).float().mean() > 0.002, "a bare call would have given other codes"


def test_a_target_is_computed_in_ieee_arithmetic_and_leaves_torchs_flags_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, batch = build("token")
    assert isinstance(target, Token)
    seen: list[tuple[bool, bool]] = []
    original = Linear.forward

    def forward(self: Linear, view: Tensor) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return original(self, view)

    monkeypatch.setattr(Linear, "forward", forward)
    with float32_products("tf32"):
        target(batch, IDS)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    assert seen == [(False, False)]


def test_pca_works_in_float64() -> None:
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        target, batch = build("pca")
        assert torch.isfinite(target.loss(torch.randn(2, 4, 5), target(batch, IDS))).all()
    finally:
        torch.set_default_dtype(default)
