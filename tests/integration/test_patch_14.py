"""A detector with a patch of 14 px equals one with 16 px: the same features; boxes, anchors and strides times 14/16."""

from typing import Any

import pytest
import torch
from detect_runs import config, values
from torch import Tensor, nn
from torchvision.ops import box_area

from mae_transfer.adapters import AdaptedBackbone, TapFPNConfig
from mae_transfer.adapters.levels import NORMS
from mae_transfer.engine.dist import Dist
from mae_transfer.interfaces import Backbone, Features, Objects
from mae_transfer.models.mask_rcnn import HeadsConfig, MaskRCNN
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.detect import Detect

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
GRID, WIDTH, CLASSES = (24, 16), 16, 3  # patches of an image


class SameMaps(Backbone):
    """A backbone of some patch that gives the same maps whatever it sees."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch, self.dim, self.depth = patch, 32, 4

    def forward(self, images: Tensor, *, taps: Any, norm: bool = False) -> Features:
        assert images.shape[2:] == (GRID[0] * self.patch, GRID[1] * self.patch)
        torch.manual_seed(0)
        return Features(tuple(torch.randn(len(images), self.dim, *GRID) for _ in taps), None)


def detector(patch: int, engine: str) -> Any:
    torch.manual_seed(1)
    backbone = SameMaps(patch)
    adapter = TapFPNConfig(fpn=WIDTH, norm="layer", p6=True, scales="relative").build(backbone.maps())
    anchors = tuple(side * patch // 16 for side in (32, 64, 128, 256, 512))
    heads = HeadsConfig(norm="layer", box_convs=1, box_width=16, mask_convs=1, anchors=anchors, score_threshold=0.0)
    pyramid, strides = AdaptedBackbone(backbone, adapter), list(adapter.strides.values())
    assert strides == [side * patch / 16 for side in (4, 8, 16, 32, 64)]
    if engine == "torchvision":
        model: nn.Module = MaskRCNN(
            pyramid, channels=WIDTH, strides=strides, classes=CLASSES, heads=heads, norm=NORMS["layer"]
        )
    else:
        from mae_transfer.tasks.detectron2 import Detectron2RCNN

        model = Detectron2RCNN(pyramid, strides=strides, classes=CLASSES, heads=heads)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05 if "pred" in name or "logits" in name or "deltas" in name else 0.1)
    return model


def objects(patch: int) -> Objects:
    # Boxes nearly as large as an anchor: if an anchor can move within its object, several are equally good and rounding
    # decides between them.
    corner = torch.tensor([[10.3, 20.7], [61.1, 130.6], [199.7, 201.9], [101.3, 50.9]])
    boxes = torch.cat(
        [corner, corner + torch.tensor([[66.3, 62.1], [130.4, 125.7], [33.1, 31.3], [46.9, 88.3]])], dim=1
    )
    return Objects(
        boxes * patch / 16,
        torch.tensor([0, 1, 2, 1]),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, 0, dtype=torch.int32),
    )


@pytest.fixture
def twins(request: pytest.FixtureRequest) -> Any:
    """twins(engine) -> (a detector, its input) for patches of 16 and of 14 px."""

    def make(engine: str) -> list[tuple[Any, tuple[Any, ...]]]:
        if engine == "detectron2":
            request.getfixturevalue("detectron2")
        sizes = [(GRID[0] * patch, GRID[1] * patch) for patch in (16, 14)]
        return [
            (detector(patch, engine), (torch.zeros(1, 3, *size), [size]))
            for patch, size in zip((16, 14), sizes, strict=True)
        ]

    return make


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")  # detectron2's own imports warn
def test_losses_are_the_twin_s(engine: str, twins: Any) -> None:
    losses = []
    for (model, given), patch in zip(twins(engine), (16, 14), strict=True):
        torch.manual_seed(3)
        losses.append(model.train()(*given, [objects(patch)]))
    for name, value in losses[0].items():
        torch.testing.assert_close(
            losses[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_what_is_found_is_the_twin_s(engine: str, twins: Any) -> None:
    ours, other = (model.eval()(*given)[0] for model, given in twins(engine))
    assert len(ours.boxes) == len(other.boxes) > 10
    torch.testing.assert_close(other.boxes * 16 / 14, ours.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(other.scores, ours.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.masks, ours.masks, rtol=1e-3, atol=1e-4)


def test_a_region_is_pooled_from_the_level_on_which_it_has_the_same_cells() -> None:
    sides = torch.linspace(4, 900, 200)
    boxes = torch.stack([torch.zeros(200), torch.zeros(200), sides, sides], dim=1)
    sixteen, fourteen = (detector(patch, "torchvision").roi_heads.box_pooler.level for patch in (16, 14))
    assert torch.equal(fourteen([boxes * 14 / 16]), sixteen([boxes]))
    rule = (4 + (box_area(boxes).sqrt() / 224).log2()).floor().clamp(2, 5) - 2  # FPN (1612.03144), section 4.2
    assert torch.equal(sixteen([boxes]), rule.long())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")
def test_the_task_keeps_strides_that_are_no_whole_pixels(engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "detectron2":
        request.getfixturevalue("detectron2")
    data = values()["data"] | {"augmentation": {"name": "large_scale_jitter", "size": 56}, "square": 56}
    data["view"] = {"name": "shortest_edge", "lengths": (56,), "longest": 56, "flip": 0.0}
    encoder = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 14, "image_size": 56}
    adapter = {"name": "tap_fpn", "fpn": 32, "p6": True, "scales": "relative"}
    cfg = config(data=data, adapter=adapter, backbone={"encoder": encoder}, engine=engine)
    task = Detect(cfg, Dist(torch.device("cpu")))
    task.open()
    model: Any = task.model()
    poolers = model.roi_heads.box_pooler
    if engine == "torchvision":
        assert model.rpn.anchor_generator.strides == (3.5, 7, 14, 28, 56)
        assert poolers.strides == (3.5, 7, 14, 28)
    else:
        assert model.rpn.anchor_generator.strides == [3.5, 7, 14, 28, 56]
        assert [1 / level.spatial_scale for level in poolers.level_poolers] == [3.5, 7, 14, 28]


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("detectron2")
def test_the_bridge_states_the_strides_that_the_pyramid_has() -> None:
    from mae_transfer.adapters.detectron2 import to_detectron2

    vit = ViT(
        ViTConfig(size=None, dim=32, depth=4, heads=2, patch=14, image_size=56, class_token=False, final_norm=False)
    )
    shapes = to_detectron2(
        AdaptedBackbone(vit, TapFPNConfig(fpn=32, p6=True, scales="relative").build(vit.maps()))
    ).output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {"p2": 3.5, "p3": 7, "p4": 14, "p5": 28, "p6": 56}
