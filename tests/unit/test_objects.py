"""Input of detectors: jitter, resizing, flips, padding, and removed objects."""

from dataclasses import replace

import pytest
import torch

from mae_transfer.config import validate
from mae_transfer.core.runs import extents, from_masks, rasterize
from mae_transfer.data import Key
from mae_transfer.data.coco import AnnotatedImage, ObjectSource
from mae_transfer.data.dense_shapes import ShapesObjectsConfig
from mae_transfer.data.objects import (
    LargeScaleJitter,
    ObjectDataConfig,
    Scene,
    SceneBatch,
    Scenes,
    SceneTransform,
    ShortestEdge,
    clip_objects,
    mirror,
    resize_scene,
)
from mae_transfer.interfaces import Objects
from mae_transfer.seeding import seeded


def scene(height: int = 60, width: int = 100) -> Scene:
    """Return an image with two rectangles as objects, drawn in the image too; the second is a crowd."""
    image, masks = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(2, height, width, dtype=torch.uint8)
    for k, (x0, y0, x1, y1) in enumerate(((10, 20, 40, 50), (50, 5, 90, 25))):
        image[k, y0:y1, x0:x1], masks[k, y0:y1, x0:x1] = 255, 1
    boxes = torch.tensor([[10.0, 20, 40, 50], [50, 5, 90, 25]])
    return Scene(image, Objects(boxes, torch.tensor([3, 7]), torch.tensor([False, True]), from_masks(masks)))


def drawn(of: Scene) -> torch.Tensor:
    """Return its masks (n, H, W)."""
    return rasterize(of.objects.masks, of.image.shape[1:])


def test_a_mirrored_scene_is_mirrored_in_image_boxes_and_masks() -> None:
    flipped = mirror(scene())
    assert flipped.objects.boxes.tolist() == [[60, 20, 90, 50], [10, 5, 50, 25]]
    assert torch.equal(drawn(flipped)[0], (flipped.image[0] > 0).to(torch.uint8))
    assert torch.equal(mirror(flipped).image, scene().image)


@pytest.mark.parametrize("size", [(120, 200), (30, 50), (61, 97)])
def test_boxes_masks_and_image_stay_together_when_resized(size: tuple[int, int]) -> None:
    small = resize_scene(scene(), size)
    assert small.image.shape == (3, *size)
    scale = torch.tensor([size[1] / 100, size[0] / 60]).repeat(2)
    torch.testing.assert_close(small.objects.boxes, scene().objects.boxes * scale)
    for k, mask in enumerate(drawn(small)):
        assert (
            mask.bool() ^ (small.image[k] > 127)
        ).float().mean() < 0.02  # the image's edge is antialiased, the mask's is not
    assert (extents(small.objects.masks, size) - small.objects.boxes).abs().max() <= 1


def test_a_window_equals_cropping_after_resizing() -> None:
    whole, part = resize_scene(scene(), (120, 200)), resize_scene(scene(), (120, 200), window=(30, 10, 64, 80))
    assert torch.equal(part.image, whole.image[:, 30:94, 10:90])
    assert torch.equal(drawn(part), drawn(whole)[:1, 30:94, 10:90])  # the second object lies outside
    assert part.objects.boxes.tolist() == [[10.0, 10.0, 70.0, 64.0]]  # of the mask that is left
    assert part.objects.labels.tolist() == [3]


def test_objects_without_area_or_pixels_are_removed() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 9], [90, 0, 99, 9], [0, 0, 4, 4]])
    masks = torch.ones(4, 20, 20, dtype=torch.uint8)
    masks[3] = 0
    left = clip_objects(Objects(boxes, torch.arange(4), torch.zeros(4, dtype=torch.bool), from_masks(masks)), (20, 20))
    assert left.labels.tolist() == [0]
    nothing = Objects(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.bool),
        from_masks(torch.zeros(0, 20, 20)),
    )
    assert len(clip_objects(nothing, (20, 20)).boxes) == 0


def test_large_scale_jitter_draws_scales_flips_and_offsets() -> None:
    jitter, sizes, flips = LargeScaleJitter(size=64, scale=(0.1, 2.0)), [], 0
    for seed in range(200):
        with seeded(seed):
            out = jitter(scene())
        sizes.append(tuple(out.image.shape[1:]))
        flips += bool(len(out.objects.labels) == 2 and out.objects.boxes[0, 0] > out.objects.boxes[1, 0])
        assert max(sizes[-1]) <= 64
        assert (extents(out.objects.masks, out.image.shape[1:])[:, 2:] <= torch.tensor(sizes[-1]).flip(0)).all()
    widths = sorted(width for _, width in sizes)
    assert widths[0] < 12
    assert sum(width == 64 for width in widths) == pytest.approx(
        200 * 1.0 / 1.9, abs=25
    )  # every scale above 1 fills the width
    assert 60 < flips < 140


def test_the_same_seed_draws_the_same_scene() -> None:
    outs = []
    for _ in range(2):
        with seeded(5):
            outs.append(LargeScaleJitter(size=64)(scene()))
    assert torch.equal(outs[0].image, outs[1].image)
    assert torch.equal(outs[0].objects.boxes, outs[1].objects.boxes)


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [((120,), 1333, (120, 200)), ((800,), 1000, (600, 1000)), ((30,), 40, (24, 40)), ((61,), 1333, (61, 102))],
)
def test_the_shorter_side_is_resized_and_the_longer_one_is_bounded(
    lengths: tuple[int, ...], longest: int, expected: tuple[int, int]
) -> None:
    assert ShortestEdge(lengths=lengths, longest=longest, flip=0.0)(scene()).image.shape[1:] == expected


class Two:
    """A set of two scenes of different shapes, as a source."""

    classes = tuple("abcdefgh")

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> AnnotatedImage:
        return AnnotatedImage(*(scene(60, 100), scene(90, 95))[index], index + 1)


def batch(transform: SceneTransform, *, square: int | None, training: bool) -> SceneBatch:
    source: ObjectSource = Two()  # type: ignore[assignment]
    samples = Scenes(source=source, seed=0, transform=transform, square=square, divisor=32, training=training)
    found: SceneBatch = samples[[Key(0, 0, 0), Key(0, 1, 0)]].batch
    return found


def test_a_batch_is_padded_right_and_below_and_knows_its_images_sizes() -> None:
    same = ShortestEdge(lengths=(60,), longest=200, flip=0.0)
    found = batch(same, square=None, training=True)
    assert found.image.shape == (2, 3, 64, 128)  # the largest of the batch, to a multiple of 32
    assert found.sizes == ((60, 100), (60, 63))
    assert found.index.tolist() == [0, 1]
    assert not found.image[1, :, :, 63:].any()
    assert batch(same, square=160, training=True).image.shape == (2, 3, 160, 160)


def test_training_leaves_crowds_out_and_evaluation_carries_no_objects() -> None:
    same = ShortestEdge(lengths=(60,), longest=200, flip=0.0)
    assert [objects.labels.tolist() for objects in batch(same, square=None, training=True).objects] == [[3], [3]]
    assert [objects.labels.tolist() for objects in batch(same, square=None, training=False).objects] == [[], []]


def test_only_boxes_cut_by_the_border_become_the_box_of_the_visible_mask() -> None:
    masks = torch.zeros(2, 20, 20, dtype=torch.uint8)
    masks[0, 4:9, 2:7] = masks[1, 4:9, 2:7] = 1
    boxes = torch.tensor([[1.6, 3.7, 7.2, 9.1], [-3.0, 3.7, 7.2, 9.1]])
    both = Objects(boxes, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), from_masks(masks))
    torch.testing.assert_close(
        clip_objects(both, (20, 20)).boxes, torch.tensor([[1.6, 3.7, 7.2, 9.1], [2.0, 4.0, 7.0, 9.0]])
    )
    torch.testing.assert_close(
        clip_objects(replace(both, masks=None), (20, 20)).boxes[1], torch.tensor([0.0, 3.7, 7.2, 9.1])
    )


def test_generated_scenes_keep_every_mask_within_its_box() -> None:
    samples = Scenes(
        source=ShapesObjectsConfig(size=96, length=20).open(),
        seed=0,
        transform=LargeScaleJitter(size=96),
        square=96,
        divisor=32,
        training=True,
    )
    found = samples[[Key(0, i, 0) for i in range(20)]].batch
    for objects, size in zip(found.objects, found.sizes, strict=True):
        for (x0, y0, x1, y1), mask in zip(objects.boxes.tolist(), rasterize(objects.masks, size), strict=True):
            assert mask[max(0, int(y0) - 1) : int(y1) + 2, max(0, int(x0) - 1) : int(x1) + 2].sum() == mask.sum() > 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"square": 512}, "gives images of up to 1024 pixels, but data.square = 512"),
        ({"augmentation": {"name": "large_scale_jitter", "size": 0}}, "size = 0: Input should be greater"),
        ({"view": {"name": "shortest_edge", "lengths": (800,), "longest": 640}}, "none above `longest`"),
        ({"train": {"name": "cocoo"}}, "did you mean 'coco'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        validate(changes, ObjectDataConfig, where="test")
