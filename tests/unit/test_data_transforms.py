"""Augmentations against torchvision's transforms, and equal crops in all views."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mae_transfer.config import members
from mae_transfer.data import AnyAugmentation, CentreCrop, FixedCrop, RandomCrop, transforms
from mae_transfer.data.transforms import ByolCrop, RandAugmentCrop, render, resize
from mae_transfer.interfaces import ViewSpec
from mae_transfer.seeding import seeded

MAIN = ViewSpec(32, "bicubic")
AUGMENTATIONS = members(AnyAugmentation)


def smooth(height: int = 75, width: int = 100) -> torch.Tensor:
    """A picture of slow waves, different in each direction and channel, (3, H, W) uint8."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = torch.stack([torch.sin(3 * x + 5 * y), torch.sin(7 * x), torch.sin(4 * y - x)])
    return (waves * 100 + 128).to(torch.uint8)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


@pytest.mark.parametrize("size", [(375, 500), (501, 334), (33, 900), (224, 224), (1, 1), (1, 5)])
def test_evaluation_equals_resize_256_and_centre_crop_224(size: tuple[int, int]) -> None:
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    expected = v2.Compose(
        [v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)]
    )(image)
    assert torch.equal(CentreCrop().build([ViewSpec(224, "bicubic")])(image)[0], expected)


def test_random_crop_draws_the_crops_of_torchvision_and_looks_like_pil() -> None:
    image, picture = smooth(), Image.fromarray(smooth().permute(1, 2, 0).numpy())
    ours = RandomCrop().build([MAIN])
    classic = v1.Compose(
        [
            v1.RandomResizedCrop(32, (0.2, 1.0), interpolation=v1.InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(),
            v1.PILToTensor(),
        ]
    )
    for seed in range(20):
        torch.manual_seed(seed)
        mine = ours(image)[0]
        torch.manual_seed(seed)
        assert distance(mine, classic(picture)) < 0.1


def test_half_of_the_crops_are_flipped() -> None:
    image = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64).contiguous()  # brightness grows to the right
    crops = [FixedCrop().build([MAIN])(image)[0] for _ in range(200)]
    assert 70 < sum(bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops) < 130
    assert all(
        crop[0, 0, 0] < crop[0, 0, -1] for crop in (FixedCrop(flip=0.0).build([MAIN])(image)[0] for _ in range(20))
    )


def test_a_fixed_crop_has_a_fixed_size_and_a_random_place() -> None:
    image = torch.arange(128, dtype=torch.uint8).expand(3, 128, 128).contiguous()
    spans = [
        (int(c[0, 0, 0]), int(c[0, 0, -1]) - int(c[0, 0, 0]))
        for c in (FixedCrop(flip=0.0).build([MAIN])(image)[0] for _ in range(50))
    ]
    assert len({start for start, _ in spans}) > 8
    assert max(span for _, span in spans) - min(span for _, span in spans) <= 2
    assert abs(spans[0][1] - 128 * 224 / 256) < 6


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "rand_augment"])
def test_every_view_shows_the_same_crop(name: str) -> None:
    views = (ViewSpec(56, "bicubic"), ViewSpec(112, "bicubic"), ViewSpec(28, "lanczos"), ViewSpec(56, "bilinear"))
    options = {} if name in ("none", "byol_crop") else {"jitter": 0.4}
    augment = AUGMENTATIONS[name](**options).build(views)
    for _ in range(10):
        first, *others = augment(smooth())
        for view, other in zip(views[1:], others, strict=True):
            assert other.shape == (3, view.size, view.size)
            assert other.dtype == torch.uint8
            assert distance(F.resize(other, [56, 56], antialias=True), first) < 2


def test_lanczos_equals_pil() -> None:
    image = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((20, 30), Image.Resampling.LANCZOS)
    assert torch.equal(resize(image, (30, 20), "lanczos"), torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_jitter_changes_colours_within_its_strength() -> None:
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    means = torch.tensor([float(RandomCrop(jitter=0.4).build([MAIN])(image)[0].float().mean()) for _ in range(100)])
    assert means.std() > 10
    assert means.min() >= 59
    assert means.max() <= 141
    assert distance(RandomCrop().build([MAIN])(image)[0], torch.tensor(100)) == 0


def test_no_augmentation_draws_nothing() -> None:
    state = torch.get_rng_state()
    CentreCrop().build([MAIN])(smooth())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_tiny_and_thin_images_work(name: str, size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 9, dtype=torch.uint8)
    options = {"policy": "rand-m0-n0"} if name == "rand_augment" else {}
    (view,) = AUGMENTATIONS[name](**options).build([MAIN])(image)
    assert torch.equal(view, torch.full((3, 32, 32), 9, dtype=torch.uint8))


def test_byols_crop_keeps_to_area_and_aspect_and_is_cut_to_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []
    monkeypatch.setattr(transforms, "render", lambda image, box, views, flip: boxes.append(box))
    augment = ByolCrop().build([MAIN])
    random.seed(0)
    for _ in range(500):
        augment(torch.zeros(3, 200, 200, dtype=torch.uint8))
        augment(torch.zeros(3, 40, 200, dtype=torch.uint8))
    square, wide = boxes[::2], boxes[1::2]
    assert all(top + h <= 200 and left + w <= 200 for top, left, h, w in square)
    free = [(h, w) for _, _, h, w in square if max(h, w) < 200]
    assert all(0.08 * 0.95 < h * w / 200**2 <= 1 and 0.73 < w / h < 1.36 for h, w in free)
    assert min(h * w for h, w in free) < 0.12 * 200**2 < 0.8 * 200**2 < max(h * w for h, w in free)
    cut = [w / h for top, _, h, w in wide if h == 40]
    assert len(cut) > 250  # torchvision's crop would have fallen back or drawn again
    assert max(cut) > 1.4


def test_rand_augment_equals_timm_on_the_same_crop() -> None:
    image, changed = smooth(), 0
    augment = RandAugmentCrop().build([MAIN])
    for seed in range(5):
        with seeded(seed):
            (view,) = augment(image)
        with seeded(seed):
            (crop,) = RandomCrop(scale=(0.08, 1.0)).build([MAIN])(image)
            options = {
                "translate_const": int(32 * 0.45),
                "img_mean": (124, 116, 104),
                "interpolation": Image.Resampling.BICUBIC,
            }
            picture = Image.fromarray(crop.permute(1, 2, 0).numpy())
            expected = torch.from_numpy(np.array(rand_augment_transform("rand-m9-mstd0.5-inc1", options)(picture)))
        assert torch.equal(view, expected.permute(2, 0, 1))
        changed += not torch.equal(view, crop)
    assert changed >= 3


def test_a_whole_box_at_its_own_size_is_the_image() -> None:
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(render(image, (0, 0, 32, 32), [MAIN], flip=False)[0], image)
    assert torch.equal(render(image, (0, 0, 32, 32), [MAIN], flip=True)[0], image.flip(-1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random_crop", {"scale": (0.5, 0.2)}),
        ("random_crop", {"scale": (0.2, 1.5)}),
        ("random_crop", {"jitter": 2.0}),
        ("fixed_crop", {"shorter_side": 0.5}),
        ("byol_crop", {"aspect": (2.0, 1.0)}),
        ("rand_augment", {"policy": "augmix-m3"}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AUGMENTATIONS[name](**options).build([MAIN])


def test_a_thin_image_is_cropped_before_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    thin = torch.zeros(3, 1, 4001, dtype=torch.uint8)
    thin[:, :, 2000] = 255
    sizes = []
    monkeypatch.setattr(
        transforms, "resize", lambda image, size, filter: sizes.append(size) or resize(image, size, filter)
    )
    view = CentreCrop().build([MAIN])(thin)[0]
    assert max(sizes[0]) <= 33 * 37
    bright = view.float().mean(dim=(0, 1)).argmax().item()
    assert abs(bright - 15.5) < 20  # one pixel of the source is as wide as the view: the bright one is in the middle
    ordinary = torch.randint(256, (3, 20, 600), dtype=torch.uint8)
    assert torch.equal(transforms._limit_length(ordinary), ordinary)


@pytest.mark.parametrize("stored", [(90, 70), (64, 300), (50, 50), (200, 131)])
@pytest.mark.parametrize("size", [(64, 128), (48, 32), 40])
def test_the_evaluation_view_equals_timm_for_any_shape(stored: tuple[int, int], size: int | tuple[int, int]) -> None:
    """timm's transforms_imagenet_eval: ResizeKeepRatio to cover the frame, then CenterCrop; one pixel of rounding."""
    image = smooth(*stored)
    ours = CentreCrop(shorter_side=1.25).build([ViewSpec(size, "bicubic")])(image)[0]
    high, wide = (size, size) if isinstance(size, int) else size
    steps = transforms_imagenet_eval((high, wide), crop_pct=0.8, interpolation="bicubic", normalize=False).transforms
    theirs = image_of(image)
    for step in steps[:2]:  # the resizing and the crop, without the tensor
        theirs = step(theirs)
    expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
    assert ours.shape == expected.shape == (3, high, wide)
    assert distance(ours, expected) < 3


def image_of(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_every_augmentation_renders_views_that_are_not_square_and_show_the_same() -> None:
    views = (ViewSpec((32, 64), "bicubic"), ViewSpec((16, 32), "bicubic"))
    for make in (CentreCrop, FixedCrop, RandomCrop, ByolCrop):
        first, second = make().build(views)(smooth(90, 120))
        assert (first.shape, second.shape) == ((3, 32, 64), (3, 16, 32))
        halved = torch.nn.functional.avg_pool2d(first.float(), 2)
        assert distance(halved, second) < 6
    assert RandAugmentCrop().build(views[:1])(smooth(90, 120))[0].shape == (3, 32, 64)


def test_a_fixed_crop_has_the_shape_of_its_view() -> None:
    image = torch.zeros(3, 100, 300, dtype=torch.uint8)
    image[1] = torch.arange(300, dtype=torch.uint8) // 2
    image[2] = torch.arange(100, dtype=torch.uint8)[:, None]
    crop = FixedCrop(shorter_side=1.25, flip=0.0).build([ViewSpec((40, 80), "bicubic")])(image)[0].float()
    assert crop[2, -1].mean() - crop[2, 0].mean() == pytest.approx(
        78, abs=2
    )  # 80 of the 100 rows: the largest box is 100 x 200
    assert crop[1, :, -1].mean() - crop[1, :, 0].mean() == pytest.approx(79, abs=2)  # 160 columns
