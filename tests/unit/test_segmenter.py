"""Parts of the segmenter: assembly, learning rates, weight decay, and inference at image borders."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae_transfer import checkpoints
from mae_transfer.adapters import AdaptedBackbone, TapFPNConfig
from mae_transfer.adapters.mmseg import Segmenter, accuracy, quiet
from mae_transfer.adapters.mmseg_transforms import Rescale, TrainingCrop
from mae_transfer.config import validate
from mae_transfer.data import Key
from mae_transfer.data.ade import MappedImage
from mae_transfer.data.dense_shapes import ShapesMapsConfig
from mae_transfer.data.maps import MapCrops, MapDataConfig, inside
from mae_transfer.engine.optim import OptimConfig
from mae_transfer.interfaces import IGNORED
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.seeding import seeded
from mae_transfer.tasks.segment_inference import Windows, logits, starts
from mae_transfer.tasks.segment_protocols import SegmentProbe, UperNet

DEPTH, CLASSES = 4, 5


def vit(**options: Any) -> ViT:
    torch.manual_seed(0)
    small = {"size": None, "dim": 32, "depth": DEPTH, "heads": 2, "patch": 8, "image_size": 32, "final_norm": False}
    return ViT(ViTConfig.model_validate(small | options))


def upernet(**options: Any) -> Segmenter:
    return UperNet(channels=16, **options).model(
        vit(relative_positions="per_block", positions="learned", layer_scale=1.0), CLASSES
    )


def test_assembly_leaves_the_loaded_weights_untouched() -> None:
    encoder = vit()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    model = UperNet(channels=16).model(encoder, CLASSES)
    model.net.init_weights()  # what mmengine's Runner would call
    assert model.encoder is encoder
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_the_heads_start_as_mmseg_starts_them() -> None:
    model = upernet()
    for head in model.heads():
        assert head.conv_seg.weight.detach().std() == pytest.approx(0.01, rel=0.3)
        assert not head.conv_seg.bias.any()
    assert [type(head).__name__ for head in model.heads()] == ["UPerHead", "FCNHead"]


def test_a_red_image_reaches_the_encoder_as_red() -> None:
    red = torch.zeros(3, 40, 60, dtype=torch.uint8)
    red[0] = 200
    with seeded(0):
        crop, _ = TrainingCrop(scale=(80, 32), ratios=(0.9, 1.1), size=32, largest_share=1.0, distort=False)(
            red, torch.zeros(40, 60, dtype=torch.uint8)
        )
    (view,) = Rescale(scale=(80, 32))(red)
    seen: list[Tensor] = []
    model = upernet()
    model.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for image in (crop, view):
        model.eval()(image[None].float())
    for images in seen:
        assert images[:, 0].unique().tolist() == [200]
        assert not images[:, 1:].any()
    assert len(seen) == 2


def test_every_trainable_parameter_has_a_gradient_after_one_step() -> None:
    for model in (upernet(), SegmentProbe().model(vit(), CLASSES)):
        out = model.train()(torch.randn(2, 3, 32, 32))
        torch.stack(
            [*model.losses(out, torch.randint(0, CLASSES, (2, 32, 32), dtype=torch.uint8)).values()]
        ).sum().backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without


def by_name(model: Segmenter, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


ENCODER = "net.backbone.pyramid.backbone."
TABLE = {  # layers: 0 the stem, 1..4 the blocks, 5 the rest; scale 0.5 ** (5 - layer)
    ENCODER + "cls_token": (0.5**5, 0.0),
    ENCODER + "pos_embed": (0.5**5, 0.0),
    ENCODER + "patch_embed.proj.weight": (0.5**5, 0.05),
    ENCODER + "patch_embed.proj.bias": (0.5**5, 0.0),
    ENCODER + "blocks.0.attn.qkv.weight": (0.5**4, 0.05),
    ENCODER + "blocks.0.ls1.gamma": (0.5**4, 0.0),
    ENCODER + "rel_pos_bias.0.table": (0.5**4, 0.0),
    ENCODER + "blocks.1.norm1.weight": (0.5**3, 0.0),
    ENCODER + "blocks.2.mlp.fc1.weight": (0.5**2, 0.05),
    ENCODER + "blocks.2.mlp.fc1.bias": (0.5**2, 0.0),
    ENCODER + "blocks.3.attn.proj.weight": (0.5, 0.05),
    ENCODER + "rel_pos_bias.3.table": (0.5, 0.0),
    "net.backbone.pyramid.adapter.scale.0.0.weight": (1.0, 0.05),
    "net.backbone.pyramid.adapter.scale.0.1.weight": (1.0, 0.0),
    "net.decode_head.conv_seg.weight": (1.0, 0.05),
    "net.decode_head.bottleneck.bn.weight": (1.0, 0.0),
    "net.auxiliary_head.conv_seg.bias": (1.0, 0.0),
}
OPTIM = OptimConfig(lr=1e-4, weight_decay=0.05, layer_decay=0.5)


def test_rates_and_decay_equal_a_table_computed_by_hand() -> None:
    model = upernet()
    found = by_name(model, UperNet().groups(model, OPTIM))
    assert {name: found[name] for name in TABLE} == TABLE
    assert set(found) == {name for name, _ in model.named_parameters()}
    for block in range(DEPTH):
        scales = {scale for name, (scale, _) in found.items() if name.startswith(f"{ENCODER}blocks.{block}.")}
        assert scales == {0.5 ** (DEPTH - block)}, f"block {block}"


def test_as_published_position_table_class_token_and_bias_tables_decay() -> None:
    model = upernet()
    spared, published = (
        by_name(model, UperNet(decays=decays).groups(model, OPTIM)) for decays in ("spared", "published")
    )
    different = {name for name in spared if spared[name] != published[name]}
    tables = {f"{ENCODER}rel_pos_bias.{block}.table" for block in range(DEPTH)}
    assert different == {ENCODER + "cls_token", ENCODER + "pos_embed"} | tables
    assert {published[name][1] for name in different} == {0.05}


def test_a_linear_heads_trunk_is_frozen_and_stays_in_evaluation() -> None:
    model = SegmentProbe(taps=(1, 3)).model(vit(drop_path=0.5), CLASSES)
    model.train()
    assert not model.encoder.training
    assert model.net.decode_head.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"net.backbone.pyramid.adapter.norms.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")
    } | {
        "net.decode_head.conv_seg.weight",
        "net.decode_head.conv_seg.bias",
    }
    with pytest.raises(ValueError, match="encoder is frozen"):
        SegmentProbe().groups(model, OPTIM)


@pytest.mark.parametrize(
    "reference", ["random:swin_tiny_patch4_window7_224", "random:convnext_atto", "random:resnet18"]
)
def test_a_hierarchical_backbone_segments_and_trains_throughout(reference: str) -> None:
    changes = {"image_size": 64, **UperNet(drop_path=0.0).changes()}
    model = UperNet(channels=8).model(checkpoints.load(reference, changes=changes).backbone, CLASSES)
    out = model.train()(torch.randn(2, 3, 64, 64))
    assert out[0].shape == (2, CLASSES, 16, 16)
    torch.stack(
        [*model.losses(out, torch.randint(0, CLASSES, (2, 64, 64), dtype=torch.uint8)).values()]
    ).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    scales = {group["lr_scale"] for group in UperNet().groups(model, OPTIM)}
    assert scales == {0.5**layer for layer in range(model.encoder.depth + 2)}


def test_a_patch_of_fourteen_pixels_is_scaled_relative_to_it() -> None:
    model = UperNet(channels=8).model(vit(patch=14, image_size=56), CLASSES)
    assert model.eval()(torch.randn(1, 3, 56, 56))[0].shape == (1, CLASSES, 16, 16)
    assert model.pyramid.adapter.strides["p2"] == 3.5


def test_released_weights_take_layer_scale_and_bias_tables_without_changing_what_they_compute(tmp_path: Any) -> None:
    plain = vit(positions="fixed")
    checkpoints.export_backbone(tmp_path / "backbone.safetensors", plain, about={"pretrain": "MAE"})
    wanted = UperNet(relative_positions="per_block", positions="learned", layer_scale=1.0, drop_path=0.0).changes()
    dressed = checkpoints.load(str(tmp_path / "backbone.safetensors"), changes=wanted).backbone
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(dressed(images).maps[0], plain.eval()(images).maps[0])
    assert dressed.pos_embed is not None
    assert dressed.pos_embed.requires_grad


def test_windows_cover_an_axis_and_the_last_one_is_moved_inside() -> None:
    assert starts(64, 64, 40) == [0]
    assert starts(100, 64, 40) == [0, 36]
    assert starts(150, 64, 40) == [0, 40, 80, 86]


class Sums(nn.Module):
    """A model whose logits tell its input: one channel, each 8 x 8 cell's mean."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.shape[2] % 8 == 0
        assert images.shape[3] % 8 == 0
        return (nn.functional.avg_pool2d(images[:, :1], 8),)


def test_what_the_model_is_shown_is_a_whole_window_or_a_whole_image_with_a_margin() -> None:
    model, shown = Sums(), []
    model.register_forward_pre_hook(lambda module, given: shown.append(tuple(given[0].shape[2:])))
    assert logits(model, torch.ones(1, 3, 30, 21), Windows(64, 40, 8, 4)).shape == (1, 1, 30, 21)
    assert logits(model, torch.ones(1, 3, 90, 21), Windows(64, 40, 8, 4)).shape == (1, 1, 90, 21)
    assert logits(model, torch.ones(1, 3, 90, 21), Windows(None, 40, 8, 4)).shape == (1, 1, 90, 21)
    assert shown == [(64, 64), (64, 64), (96, 24)]


@pytest.mark.parametrize("reference", ["random:swin_tiny_patch4_window7_224", "random:vit_tiny_patch16_224"])
def test_an_encoder_of_one_size_segments_images_smaller_than_the_window(reference: str) -> None:
    encoder = checkpoints.load(reference, changes={"image_size": 64, **UperNet(drop_path=0.0).changes()}).backbone
    model = UperNet(channels=8).model(encoder, CLASSES).eval()
    assert logits(model, torch.randn(1, 3, 20, 90), Windows(64, 40, model.pyramid.size_divisor, 4)).shape == (
        1,
        CLASSES,
        20,
        90,
    )


def test_windows_of_patches_of_fourteen_pixels_have_the_grid_of_training() -> None:
    model, shown = UperNet(channels=8).model(vit(patch=14, image_size=42), CLASSES).eval(), []
    model.encoder.register_forward_pre_hook(lambda module, given: shown.append(tuple(given[0].shape[2:])))
    logits(model, torch.randn(1, 3, 42, 60), Windows(42, 28, model.pyramid.size_divisor, 4))
    assert shown == [(42, 42)]


def test_windows_of_constant_images_average_to_the_constant() -> None:
    found = logits(Sums(), torch.full((1, 3, 100, 70), 2.0), Windows(32, 20, 8, 3))
    torch.testing.assert_close(found, torch.full_like(found, 2.0))


def test_accuracy_counts_labelled_pixels_only() -> None:
    scores = torch.zeros(1, 2, 2, 2)
    scores[:, 1, 0] = 1.0
    labels = torch.tensor([[[1, IGNORED], [1, 0]]], dtype=torch.uint8)
    assert accuracy(scores, labels) == pytest.approx(2 / 3)
    assert accuracy(scores, torch.full_like(labels, IGNORED)) == 0


def test_crops_are_padded_with_ignored_pixels_and_know_their_extent() -> None:
    class Small:
        classes = ("a",)

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> MappedImage:
            return MappedImage(torch.full((3, 20, 28), 9, dtype=torch.uint8), torch.zeros(20, 28, dtype=torch.uint8))

        def where(self, index: int) -> str:
            return "small"

    crops = MapCrops(source=Small(), seed=0, transform=lambda image, labels: (image, labels), size=32)
    batch = crops[[Key(0, 0, 0)]].batch
    assert batch.extent.tolist() == [[20, 28]]
    kept = inside(batch.extent, 32)
    assert kept.sum() == 20 * 28
    assert (batch.image[0, 0] > 0).equal(kept[0, 0])
    assert (batch.labels[0] != IGNORED).equal(kept[0, 0])


def test_crops_depend_on_their_key_alone() -> None:
    transform = TrainingCrop(scale=(128, 48), ratios=(0.5, 2.0), size=32, largest_share=0.75)
    crops = MapCrops(source=ShapesMapsConfig(size=48, length=6).open(), seed=3, transform=transform, size=32)
    together = crops[[Key(0, 1, 0), Key(0, 4, 0)]].batch
    np.random.seed(5)  # whatever was drawn before
    alone = crops[[Key(0, 4, 0)]].batch
    assert torch.equal(together.image[1], alone.image[0])
    assert torch.equal(together.labels[1], alone.labels[0])
    assert not torch.equal(crops[[Key(1, 4, 0)]].batch.image, alone.image)


def test_transforms_travel_to_workers_that_are_not_forked() -> None:
    transform = TrainingCrop(scale=(128, 48), ratios=(0.5, 2.0), size=32, largest_share=0.75, flip=0.25, distort=False)
    again = pickle.loads(pickle.dumps(transform))
    assert again.options == transform.options
    image, labels = ShapesMapsConfig(size=48, length=2).open().read(0)
    with seeded(0):
        expected = transform(image, labels)
    with seeded(0):
        assert all(torch.equal(a, b) for a, b in zip(expected, again(image, labels), strict=True))
    assert pickle.loads(pickle.dumps(Rescale(scale=(96, 48))))(image)[0].shape == (3, 48, 48)


def test_views_of_several_scales_are_no_smaller_than_the_window() -> None:
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    sizes = [tuple(view.shape[1:]) for view in Rescale(scale=(400, 64), ratios=(0.5, 1.0, 1.5), least=64)(image)]
    assert sizes == [(64, 128), (64, 128), (96, 192)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": (512, 2048)}, "longer side before"),
        ({"ratios": (2.0, 0.5)}, "smallest factor first"),
        ({"train": {"name": "ade", "split": "training", "clases": ("a",)}}, "did you mean 'classes'"),
        ({"val": {"name": "cityscapes"}}, "unknown name 'cityscapes'"),
    ],
)
def test_bad_data_options_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(values, MapDataConfig, where="data")


def test_taps_that_the_encoder_has_not_are_named() -> None:
    with pytest.raises(ValueError, match="give maps 0..3 of this backbone"):
        UperNet(taps=(3, 5, 7, 11)).model(vit(), CLASSES)


def test_importing_and_building_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("noise")
    upernet()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_the_bridge_runs_a_pyramid_without_heads() -> None:
    encoder = vit()
    pyramid = AdaptedBackbone(encoder, TapFPNConfig(norm="batch", fpn=None, scales="relative").build(encoder.maps()))
    assert {name: tuple(level.shape[2:]) for name, level in pyramid(torch.randn(1, 3, 32, 32)).items()} == {
        "p2": (16, 16),
        "p3": (8, 8),
        "p4": (4, 4),
        "p5": (2, 2),
    }


def test_what_is_missing_is_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"libGL.*\.\[segment\].*libgl1"), quiet():
        raise ImportError("libGL.so.1: cannot open shared object file")
