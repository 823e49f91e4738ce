"""Views for joint embedding: the colours against torchvision and PIL, the draws, the masks, and the batches."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as PilF
from torchvision.transforms.v2 import functional as F

from mae_transfer.config import validate
from mae_transfer.core.masks import ViewMask
from mae_transfer.data import FolderConfig, Key, Order, TrainKeys, batches
from mae_transfer.data.crops import Look, MultiCrop, MultiCrops, apply_looks, finish_views, pack_masks, to_looks
from mae_transfer.data.transforms import blur, gaussian, shift_hue
from mae_transfer.interfaces import Hidden, Views, ViewSpec
from mae_transfer.seeding import seeded

SIDE = 48
WHOLE = (0, 0, SIDE, SIDE)
DRAWS = 3000
GRID = (14, 14)


def picture(side: int = SIDE) -> Tensor:
    """A smooth colour image with some noise, (3, side, side) uint8."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.stack([torch.sin(x / 5), torch.sin(y / 7), torch.sin((x + y) / 9)]) * 90 + 128
    noise = torch.randint(-20, 21, waves.shape, generator=torch.Generator().manual_seed(0))
    return (waves + noise).clamp(0, 255).to(torch.uint8)


def rendered(**changes: Any) -> Tensor:
    """The whole picture with these changes of its colours."""
    plain = {"box": WHOLE, "flip": False, "jitter": (), "grey": False, "sigma": 0.0, "solarise": False}
    return Look(**{**plain, **changes}).render(picture(), ViewSpec(SIDE, "bicubic"))


def in_pil(operation: Callable[[Image.Image], Image.Image]) -> Tensor:
    return torch.from_numpy(np.array(operation(Image.fromarray(picture().permute(1, 2, 0).numpy())))).permute(2, 0, 1)


def gap(one: Tensor, other: Tensor) -> Tensor:
    return (one.int() - other.int()).abs()


OPERATIONS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], Callable[[Image.Image], Image.Image]]] = {
    "brightness": (
        {"jitter": [(F.adjust_brightness, 1.3)]},
        lambda image: F.adjust_brightness(image, 1.3),
        lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    ),
    "contrast": (
        {"jitter": [(F.adjust_contrast, 0.7)]},
        lambda image: F.adjust_contrast(image, 0.7),
        lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    ),
    "saturation": (
        {"jitter": [(F.adjust_saturation, 1.2)]},
        lambda image: F.adjust_saturation(image, 1.2),
        lambda image: ImageEnhance.Color(image).enhance(1.2),
    ),
    "hue": (
        {"jitter": [(shift_hue, -0.08)]},
        lambda image: F.adjust_hue(image, -0.08),
        lambda image: PilF.adjust_hue(image, -0.08),
    ),
    "grey": (
        {"grey": True},
        lambda image: F.rgb_to_grayscale(image, 3),
        lambda image: image.convert("L").convert("RGB"),
    ),
    "blur": (
        {"sigma": 1.5},
        lambda image: F.gaussian_blur(image, [11, 11], [1.5, 1.5]),
        lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    ),
    "solarise": (
        {"solarise": True},
        lambda image: F.solarize(image, 128),
        lambda image: ImageOps.solarize(image, 128),
    ),
}
# grey levels: PIL stores hues in 8 bits, and its blur is three box filters, which differ most at the edges
PIL_MOST = {"hue": 12, "blur": 16}
PIL_MEAN = {"hue": 2.5, "blur": 1.2}


@pytest.mark.parametrize("name", OPERATIONS)
def test_colours_are_those_of_torchvision_to_one_grey_level_and_of_pil_about(name: str) -> None:
    changes, torchvision, pil = OPERATIONS[name]
    ours = rendered(**changes)
    assert gap(ours, picture()).float().mean() > 2
    assert gap(ours, torchvision(picture())).max() <= 1
    from_pil = gap(ours, in_pil(pil))
    assert from_pil.max() <= PIL_MOST.get(name, 2)
    assert from_pil.float().mean() < PIL_MEAN.get(name, 1)


def test_a_view_without_changes_of_colour_is_the_crop() -> None:
    assert torch.equal(rendered(), picture())
    assert torch.equal(rendered(flip=True), picture().flip(-1))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [20, 60])
def test_a_crop_is_resized_as_by_torchvision(interpolation: Literal["bicubic", "bilinear"], side: int) -> None:
    """RandomResizedCrop of v2, and of v1 on PIL images, to one grey level. Bilinear is their default."""
    box, mode = (5, 3, 30, 37), InterpolationMode(interpolation)
    ours = Look(box, False, (), False, 0.0, False).crop(picture(), ViewSpec(side, interpolation))
    assert torch.equal(ours, F.resized_crop(picture(), *box, [side, side], mode, antialias=True))
    assert gap(ours, in_pil(lambda image: PilF.resized_crop(image, *box, [side, side], mode))).max() <= 1
    other = InterpolationMode.BILINEAR if interpolation == "bicubic" else InterpolationMode.BICUBIC
    assert gap(ours, in_pil(lambda image: PilF.resized_crop(image, *box, [side, side], other))).max() > 3


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.03, 0.5])
def test_a_shift_of_the_hue_is_torchvisions_for_every_order_of_the_channels(turns: float) -> None:
    levels = torch.tensor([0.0, 0.2, 0.5, 1.0])  # with greys and ties
    image = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 8, 8).contiguous()
    torch.testing.assert_close(shift_hue(image, turns), F.adjust_hue(image, turns), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0])
def test_the_blur_is_torchvisions(sigma: float) -> None:
    image = torch.rand(3, 20, 31, generator=torch.Generator().manual_seed(0))
    kernel = [2 * int(np.ceil(3 * sigma)) + 1] * 2
    torch.testing.assert_close(
        blur(image, gaussian(sigma, 19)), F.gaussian_blur(image, kernel, [sigma] * 2), rtol=0, atol=1e-6
    )


def test_the_blur_of_a_view_smaller_than_its_kernel_keeps_the_mean_colour() -> None:
    flat = torch.full((3, 9, 9), 7, dtype=torch.uint8)
    tiny = Look((0, 0, 9, 9), False, (), False, 2.0, False).render(flat, ViewSpec(2, "bicubic"))
    assert torch.equal(tiny, flat[:, :2, :2])


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_device_changes_only_the_views_that_have_an_operation_and_as_torchvision_does(name: str) -> None:
    changes, torchvision, _ = OPERATIONS[name]
    plain = Look(WHOLE, False, (), False, 0.0, False)
    chosen = to_looks([plain, plain._replace(**changes), plain._replace(flip=True, **changes)], reach=6)
    unchanged, changed, flipped = apply_looks(picture().expand(3, 1, -1, -1, -1), chosen)[:, 0]
    assert torch.equal(unchanged, picture())
    assert gap(changed, torchvision(picture())).max() <= 1
    assert gap(flipped, torchvision(picture().flip(-1))).max() <= 1


def looks(crops: MultiCrop, view: int, draws: int = DRAWS) -> list[Look]:
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    found = []
    for seed in range(draws):
        with seeded(seed):
            found.append(crops.draw(image, view))
    return found


@pytest.mark.parametrize(("view", "blurred", "solarised"), [(0, 1.0, 0.0), (1, 0.1, 0.2), (2, 0.5, 0.0), (9, 0.5, 0.0)])
def test_draws_have_the_probabilities_of_byol(view: int, blurred: float, solarised: float) -> None:
    drawn = looks(MultiCrop(), view)
    shares = {
        0.5: [look.flip for look in drawn],
        0.8: [bool(look.jitter) for look in drawn],
        0.2: [look.grey for look in drawn],
    }
    cases = [*shares.items(), (blurred, [look.sigma > 0 for look in drawn]), (solarised, [k.solarise for k in drawn])]
    for expected, events in cases:
        assert np.mean(events) == pytest.approx(expected, abs=5 * (expected * (1 - expected) / DRAWS) ** 0.5)
    sigmas = np.array([look.sigma for look in drawn if look.sigma])
    assert 0.1 <= sigmas.min() <= sigmas.max() <= 2.0
    assert sigmas.mean() == pytest.approx(1.05, abs=5 * 1.9 / (12 * len(sigmas)) ** 0.5)


def test_jitter_draws_each_factor_uniformly_and_the_operations_in_every_order() -> None:
    jitters = [look.jitter for look in looks(MultiCrop(jitter_share=1.0), 0)]
    spans = {F.adjust_brightness: 0.4, F.adjust_contrast: 0.4, F.adjust_saturation: 0.2}
    for adjust, span in {**spans, shift_hue: 0.1}.items():
        factors = np.array([dict(jitter)[adjust] for jitter in jitters])
        middle = 0.0 if adjust is shift_hue else 1.0
        assert np.abs(factors - middle).max() <= span
        assert factors.mean() == pytest.approx(middle, abs=5 * span / (3 * DRAWS) ** 0.5)
        assert factors.std() == pytest.approx(span / 3**0.5, rel=0.1)
    orders = [tuple(adjust.__name__ for adjust, _ in jitter) for jitter in jitters]
    assert len(set(orders)) == 24
    assert max(map(orders.count, set(orders))) < DRAWS / 24 * 1.6


@pytest.mark.parametrize(("view", "scale"), [(0, (0.4, 1.0)), (1, (0.4, 1.0)), (2, (0.05, 0.4))])
def test_boxes_are_those_of_torchvision(view: int, scale: tuple[float, float]) -> None:
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    drawn = looks(MultiCrop(), view, 200)
    for seed, look in enumerate(drawn):
        with seeded(seed):
            assert look.box == RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
    shares = [height * width / 120_000 for _, _, height, width in (look.box for look in drawn)]
    assert scale[0] * 0.98 < min(shares) < max(shares) < scale[1] * 1.02


def test_views_without_colours_are_crops_alone() -> None:
    plain = MultiCrop(jitter=(0.0, 0.0, 0.0, 0.0), grey=0.0, blur=(0.0, 0.0, 0.0), solarise=(0.0, 0.0, 0.0))
    assert {look[2:] for look in looks(plain, 1, 50)} == {((), False, 0.0, False)}


# masks


def ibot(rng: random.Random, *, block: bool) -> np.ndarray:
    """The mask of loader.py of iBOT (Apache-2.0), written again: --pred_ratio 0 0.3 --pred_ratio_var 0 0.2."""
    hidden = np.zeros(GRID, dtype=bool)
    high = rng.choice([0.0, rng.uniform(0.1, 0.5)]) * hidden.size
    if not block:
        flat = [1] * int(high) + [0] * (hidden.size - int(high))
        rng.shuffle(flat)
        return np.array(flat, dtype=bool).reshape(GRID)
    count = 0
    while count < high:
        added = 0
        for _ in range(10):
            area, aspect = rng.uniform(16, high - count), np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if w < GRID[1] and h < GRID[0]:
                top, left = rng.randint(0, GRID[0] - h), rng.randint(0, GRID[1] - w)
                new = h * w - hidden[top : top + h, left : left + w].sum()
                if 0 < new <= high - count:
                    hidden[top : top + h, left : left + w] = True
                    added += new
                    break
        if not added:
            break
        count += added
    return hidden


@pytest.mark.parametrize("name", ["block", "random"])
def test_masks_hide_as_many_patches_as_ibots(name: Any) -> None:
    rng, other = np.random.default_rng(0), random.Random(0)
    ours = np.array([ViewMask(name=name)(GRID, rng).sum() for _ in range(DRAWS)])
    theirs = np.array([ibot(other, block=name == "block").sum() for _ in range(DRAWS)])
    assert ours.max() <= 98
    bins = np.arange(100)
    gaps = np.cumsum(np.histogram(ours, bins)[0]) - np.cumsum(np.histogram(theirs, bins)[0])
    assert np.abs(gaps).max() / DRAWS < 1.95 * (2 / DRAWS) ** 0.5  # Kolmogorov and Smirnov's statistic at 0.1 %


@pytest.mark.parametrize("name", ["block", "random"])
@pytest.mark.parametrize("grid", [GRID, (8, 8), (2, 3)])
def test_the_ids_of_a_batch_are_its_hidden_patches_and_the_weights_of_a_view_sum_to_one(
    name: Any, grid: tuple[int, int]
) -> None:
    mask, rng = ViewMask(name=name), np.random.default_rng(0)
    masks = [[mask(grid, rng) for _ in range(2)] for _ in range(50)]
    hidden = pack_masks(masks)
    assert (hidden.ids.dtype, hidden.weight.dtype) == (torch.int64, torch.float32)
    drawn = np.stack([[image[view] for image in masks] for view in range(2)])  # (G, B, h, w)
    assert hidden.ids.tolist() == np.flatnonzero(drawn).tolist()
    sums = torch.zeros(100).index_add(0, hidden.ids // (grid[0] * grid[1]), hidden.weight)
    torch.testing.assert_close(sums, torch.from_numpy(drawn.any(axis=(2, 3))).flatten().float())


def test_a_batch_without_a_mask_hides_nothing() -> None:
    hidden = pack_masks([[np.zeros(GRID, dtype=bool)] * 2] * 3)
    assert hidden.ids.shape == hidden.weight.shape == (0,)


# batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds: large, one pixel, grey, CMYK."""
    root = tmp_path_factory.mktemp("images") / "class"
    root.mkdir()
    large = Image.fromarray(picture(90).permute(1, 2, 0).numpy())
    kinds = {"rgb": large, "pixel": large.crop((0, 0, 1, 1)), "grey": large.convert("L"), "cmyk": large.convert("CMYK")}
    for name, image in kinds.items():
        image.save(root / f"{name}.{'jpg' if name == 'cmyk' else 'png'}")
    return root.parent


def samples(folder: Path, mask: ViewMask | None = None, **changes: Any) -> MultiCrops:
    narrow = changes.pop("narrow", 3)
    crops = MultiCrop(**changes, narrow=narrow, **({"narrow_size": 16} if narrow else {}))
    source = FolderConfig(root=str(folder)).open()
    return MultiCrops(source=source, crops=crops, size=(32, 48), seed=3, mask=mask, grid=(2, 3))


def views_of(made: MultiCrops, keys: list[Key]) -> Views:
    views = made[keys].batch
    assert isinstance(views, Views)
    return views


def test_views_have_static_shapes_for_images_of_any_kind(folder: Path) -> None:
    views = views_of(samples(folder, ViewMask()), [Key(0, image, 0) for image in range(4)])
    assert views.wide.shape == (2, 4, 3, 32, 48)
    assert views.narrow is not None
    assert views.narrow.shape == (3, 4, 3, 16, 16)
    assert isinstance(views.hidden, Hidden)
    assert views.hidden.ids.shape == views.hidden.weight.shape
    assert 0 < len(views.hidden.ids) <= 2 * 4 * 3
    assert views.label.tolist() == [0] * 4
    assert views.index.tolist() == [0, 1, 2, 3]
    assert {tensor.dtype for tensor in (views.wide, views.narrow)} == {torch.uint8}
    assert not torch.equal(views.wide[0], views.wide[1])


@pytest.mark.parametrize("augment_on", ["worker", "device"])
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_all_views_have_the_filter_of_the_config(folder: Path, name: str, augment_on: Any) -> None:
    plain = {"jitter_share": 0.0, "grey": 0.0, "blur": (0.0,) * 3, "solarise": (0.0,) * 3, "flip": 0.0}
    whole = {"wide_scale": (1.0, 1.0), "narrow_scale": (1.0, 1.0), "aspect": (1.0, 1.0)}
    made = replace(samples(folder, interpolation=name, **plain, **whole), augment_on=augment_on)
    views = finish_views(views_of(made, [Key(0, number, 0) for number in range(4)]))
    assert views.narrow is not None
    for size, drawn in (((32, 48), views.wide), ((16, 16), views.narrow)):
        expected = F.resize(picture(90), list(size), InterpolationMode(name), antialias=True)
        assert any(torch.equal(image, expected) for image in drawn[0])


def test_no_narrow_views_and_no_mask_are_none(folder: Path) -> None:
    views = views_of(samples(folder, narrow=0), [Key(0, 0, 0)])
    assert views.narrow is None
    assert views.hidden is None


def test_a_view_depends_on_its_key_and_number_alone(folder: Path) -> None:
    alone = views_of(samples(folder), [Key(2, 1, 0)])
    together = views_of(samples(folder, ViewMask(), narrow=5), [Key(2, 3, 0), Key(2, 1, 0)])
    assert alone.narrow is not None
    assert together.narrow is not None
    assert torch.equal(alone.wide[:, 0], together.wide[:, 1])
    assert torch.equal(alone.narrow[:, 0], together.narrow[:3, 1])
    assert not torch.equal(alone.wide, views_of(samples(folder), [Key(3, 1, 0)]).wide)


def test_batches_are_the_same_after_resume_in_workers_and_on_two_ranks(folder: Path) -> None:
    made, order = samples(folder, ViewMask()), Order(images=4, batch=2, seed=3)
    whole = [next(feed) for feed in [batches(made, TrainKeys(order=order))] for _ in range(3)]
    resumed = next(batches(made, TrainKeys(order=order, start=2), workers=1))
    ranks = [next(batches(made, TrainKeys(order=order, start=2, rank=rank, world=2))) for rank in range(2)]
    for name in ("wide", "narrow"):
        expected = getattr(whole[2], name)
        assert torch.equal(getattr(resumed, name), expected)
        assert torch.equal(torch.cat([getattr(part, name) for part in ranks], dim=1), expected)
    places = [set((part.hidden.ids // 6 * 2 + rank).tolist()) for rank, part in enumerate(ranks)]  # of one image each
    assert set.union(*places) == set((whole[2].hidden.ids // 6).tolist())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("narrow", [0, 3])
def test_colours_on_the_device_are_those_of_the_workers(folder: Path, workers: int, narrow: int) -> None:
    made, keys = (
        samples(folder, ViewMask(), narrow=narrow, jitter_share=1.0, blur=(0.5, 0.5, 0.5)),
        TrainKeys(order=Order(images=4, batch=4, seed=3)),
    )
    here, there = (batches(replace(made, augment_on=where), keys, workers=workers) for where in ("worker", "device"))
    for _ in range(5):
        expected, left = next(here), next(there)
        found = finish_views(left)
        assert gap(left.wide, expected.wide).float().mean() > 5
        assert found.looks == expected.looks == ()
        for name in ("wide", "narrow")[: 1 + bool(narrow)]:
            apart = gap(getattr(found, name), getattr(expected, name))
            assert apart.max() <= 1
            assert apart.float().mean() < 1e-3
        assert torch.equal(found.hidden.ids, expected.hidden.ids)


def test_a_batch_without_a_blur_and_with_every_operation_off_is_the_crops(folder: Path) -> None:
    plain = {"jitter": (0.0, 0.0, 0.0, 0.0), "grey": 0.0, "blur": (0.0,) * 3, "solarise": (0.0,) * 3, "flip": 0.0}
    left = views_of(replace(samples(folder, **plain), augment_on="device"), [Key(0, 0, 0)])
    assert torch.equal(finish_views(left).wide, left.wide)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wide_scale": (0.0, 1.0)}, "wide_scale"),
        ({"narrow_scale": (0.05, 1.2)}, "narrow_scale"),
        ({"narrow_scale": (0.4, 0.05)}, "give the smaller value first"),
        ({"wide": 0}, "wide"),
        ({"narrow": -1}, "narrow"),
        ({"blur": (1.0, 0.1)}, "blur"),
        ({"sigma": (0.0, 2.0)}, "sigma"),
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, "jitter"),
    ],
)
def test_wrong_options_of_views_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(values, MultiCrop, where="data.views")


def test_wrong_options_of_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="lower the spread"):
        validate({"ratio": 0.1}, ViewMask, where="mask")
    with pytest.raises(ValueError, match="hides no patch"):
        ViewMask().check((1, 1))
