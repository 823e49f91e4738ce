"""The model of joint embedding and its heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from mae_transfer.checkpoints.timm_models import wrap
from mae_transfer.config import load, validate
from mae_transfer.data.crops import pack_masks
from mae_transfer.engine.dist import Dist, SyncBatchNorm, synchronized
from mae_transfer.engine.optim import param_groups, peak_lr
from mae_transfer.interfaces import Hidden
from mae_transfer.models.joint import Joint
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.objectives import ContrastConfig, DistillConfig
from mae_transfer.objectives.heads import ProjectionHead, PrototypeHead
from mae_transfer.tasks.joint import JointConfig, JointEmbedding

B, K = 3, 12
ENCODER = ViTConfig(size=None, dim=16, depth=2, heads=2, patch=4, image_size=16, antialias=False, drop_path=0.5)


def joint(*, freeze_stem: bool = False, **options: Any) -> Joint:
    torch.manual_seed(0)
    cfg = validate({"hidden": 8, "bottleneck": 6, "out": K, **options}, DistillConfig, where="test")
    return Joint(ViT(ENCODER), cfg.heads(16), patches=cfg.compares, freeze_stem=freeze_stem)


def wide() -> torch.Tensor:
    return torch.randn(2, B, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def narrow() -> torch.Tensor:
    return torch.randn(3, B, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def hidden() -> Hidden:
    """Masks of 0, 1, 5, 2, 0 and 3 of the 16 patches of two views of three images."""
    rng = np.random.default_rng(0)
    masks = [rng.permutation(16).reshape(4, 4) < count for count in (0, 1, 5, 2, 0, 3)]
    return pack_masks([[masks[image], masks[B + image]] for image in range(B)])


def test_each_view_is_embedded_as_if_alone() -> None:
    model = joint().eval()
    found = model(wide(), narrow())
    assert found.image.shape == (5, B, K)
    for number, view in enumerate([*wide(), *narrow()]):
        torch.testing.assert_close(found.image[number], model.head(model.encoder(view, norm=True).cls))
    torch.testing.assert_close(model.teach(wide()).image, found.image[:2])


def test_hidden_patches_are_the_mask_token_before_positions() -> None:
    """iBOT: the student does not depend on the pixels of hidden patches."""
    model, masks = joint(patches="masked").eval(), hidden()
    found = model(wide(), narrow(), masks)
    assert [part.shape for part in found.patches] == [(11, K)]
    changed = wide()
    for place in masks.ids.tolist():
        (g, b), (top, left) = divmod(place // 16, B), divmod(place % 16 * 4, 16)
        changed[g, b, :, top * 4 : top * 4 + 4, left : left + 4] += 1.0
    assert (changed != wide()).float().mean() == pytest.approx(11 / 96)
    again = model(changed, narrow(), masks)
    torch.testing.assert_close(again.image[:2], found.image[:2])
    plain = model(wide(), narrow(), Hidden(masks.ids[:0], masks.weight[:0]))
    torch.testing.assert_close(plain.image, joint().eval()(wide(), narrow()).image)
    assert not torch.allclose(plain.image[0, 1], found.image[0, 1])


def test_ibots_mask_token_is_zero_at_first() -> None:
    encoder = ENCODER.model_copy(update={"init": "dino"})
    token = Joint(ViT(encoder), DistillConfig(out=K).heads(16), patches="masked", freeze_stem=False).mask_token
    assert token is not None
    assert not token.any()
    assert joint(patches="masked").mask_token.any()  # type: ignore[union-attr]


def test_the_teacher_embeds_the_hidden_places_of_the_whole_image_and_the_mean_of_all() -> None:
    model, masks = joint(patches="masked").eval(), hidden()
    found = model.teach(wide(), masks)
    whole = [model.encoder(view, norm=True).maps[-1].flatten(2).transpose(1, 2) for view in wide()]
    torch.testing.assert_close(found.patches[0], model.head(torch.stack(whole)).flatten(0, 2)[masks.ids])
    torch.testing.assert_close(found.patch_mean, model.head(torch.stack(whole)).mean(dim=(0, 1, 2)))


def test_matched_patches_are_all_of_all_views_with_a_head_of_their_own() -> None:
    model = joint(patches="matched", shared=False).eval()
    found = model(wide(), narrow())
    assert [part.shape[1] for part in found.patches] == [16, 16, 4, 4, 4]
    torch.testing.assert_close(found.patches[3], model.patch_head(found.tokens[3]))
    assert not torch.allclose(found.patches[3], model.head(found.tokens[3]))


def test_a_shared_head_is_registered_once() -> None:
    assert not [name for name in joint(patches="masked").state_dict() if name.startswith("patch_head")]


def test_prototypes_are_pytorchs_weight_norm() -> None:
    """nn.utils.parametrizations.weight_norm of a linear layer with g = 1, as in DINOHead."""
    head = PrototypeHead(4, hidden=8, bottleneck=6, out=K, layers=3, fixed_norm=True)
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(6, K, bias=False))
    linear.parametrizations.weight.original0.data.fill_(1)
    linear.parametrizations.weight.original1.data.copy_(head.prototypes.data)
    x = torch.randn(5, 4)
    torch.testing.assert_close(head(x), linear(F.normalize(head.mlp(x), dim=-1)))


def test_lengths_and_directions_of_prototypes_decay_as_in_dino() -> None:
    """DINO's get_params_groups spares biases and parameters of one dimension; weight_g is (K, 1), weight_v (K, D)."""
    head = PrototypeHead(4, hidden=8, bottleneck=6, out=K, layers=3, fixed_norm=False)
    decays = {
        id(p) for g in param_groups(head, weight_decay=0.1, no_decay=()) if g["weight_decay"] for p in g["params"]
    }
    assert {name for name, p in head.named_parameters() if id(p) in decays} == {
        "prototypes", "length", "mlp.0.weight", "mlp.2.weight", "mlp.4.weight",
    }  # fmt: skip


def test_a_projection_has_the_statistics_of_one_view_in_both_modes() -> None:
    cfg = ContrastConfig(out=6, hidden=8)
    heads = cfg.heads(16)
    x = torch.randn(2, 5, 16)
    x[1] = x[1] * 3 + 7
    for head in (heads.image, heads.image.eval()):
        out = head(x)
        torch.testing.assert_close(out.mean(dim=1), torch.zeros(2, 6), atol=1e-5, rtol=0)
        torch.testing.assert_close(head(x[1:])[0], out[1])
    assert [name for name, _ in heads.image.named_parameters()] == [
        "mlp.0.weight", "mlp.1.weight", "mlp.1.bias", "mlp.3.weight", "mlp.4.weight", "mlp.4.bias", "mlp.6.weight",
    ]  # fmt: skip
    moby = ContrastConfig(out=6, hidden=8, projector_layers=2, bias=True, last_norm=False, queue=8).heads(16)
    assert [type(layer).__name__ for layer in moby.image.mlp] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert isinstance(moby.predictor, ProjectionHead)


def test_the_teachers_heads_train_while_its_encoder_evaluates() -> None:
    cfg = ContrastConfig(out=6, hidden=8)
    model = Joint(ViT(ENCODER), cfg.heads(16), patches=None, freeze_stem=True)
    teacher = ModelEmaV3(model).module
    assert not teacher.encoder.blocks[1].drop_path.training
    assert all(module.training for module in teacher.head.modules())
    torch.testing.assert_close(teacher.teach(wide()).image, teacher.teach(wide()).image)
    assert not model.encoder.patch_embed.proj.weight.requires_grad


def test_over_several_gpus_the_norms_of_student_and_teacher_are_synchronised() -> None:
    """torch's SyncBatchNorm synchronises in training mode only, so the teacher's heads stay in it."""
    cfg = ContrastConfig(out=6, hidden=8)
    student = synchronized(Joint(ViT(ENCODER), cfg.heads(16), patches=None, freeze_stem=True))
    teacher = ModelEmaV3(student).module
    for model in (student, teacher, student.eval()):
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert [type(norm) for norm in norms] == [SyncBatchNorm] * 5
        assert all(norm.training and norm.running_mean is None for norm in norms)
    names = Joint(ViT(ENCODER), cfg.heads(16), patches=None, freeze_stem=True).state_dict()
    assert list(student.state_dict()) == list(names)


@pytest.mark.parametrize(("patches", "freeze_stem"), [("masked", False), (None, True)])
def test_a_swin_has_no_mask_token_and_no_patch_projection(patches: Any, freeze_stem: bool) -> None:
    from mae_transfer.checkpoints.timm_models import wrap

    swin = wrap("swin_tiny_patch4_window7_224", {"image_size": 32})
    with pytest.raises(ValueError, match="window7_224 has no mask token and no patch projection: use a ViT"):
        Joint(swin, DistillConfig(out=K).heads(swin.dim), patches=patches, freeze_stem=freeze_stem)


CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"


@pytest.mark.parametrize("name", [
    "moco_v3_vit_small", "moco_v3_vit_base", "moco_v3_small_64px", "moby_swin_tiny", "dino_vit_small",
])  # fmt: skip
def test_what_decays_is_what_decays_in_the_public_code(name: str) -> None:
    """All parameters in main_moco.py, matrices in the others; MoBY's exemption of tables does not reach its encoder."""
    task = JointEmbedding(load(CONFIGS / f"{name}.py", JointConfig), Dist(torch.device("cpu")))
    cfg = task.cfg
    with torch.device("meta"):
        encoder = wrap(cfg.model.timm, {}, where="test") if cfg.model.timm else ViT(cfg.model.encoder)
        heads = cfg.objective.heads(encoder.dim)
        model = Joint(encoder, heads, patches=cfg.objective.compares, freeze_stem=cfg.model.freeze_stem)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sizes = {"decay": 0, "no_decay": 0}
    for group in task.groups(model):
        sizes[group["name"]] = sum(p.numel() for p in group["params"])
    spared = sum(p.numel() for p in trained.values() if p.ndim < 2)
    assert spared > 1000
    assert sizes["no_decay"] == (0 if name in ("moco_v3_vit_small", "moco_v3_vit_base") else spared)
    assert sum(sizes.values()) == sum(p.numel() for p in trained.values())


def test_moby_has_the_rate_of_its_code_for_every_batch() -> None:
    optim = load(CONFIGS / "moby_swin_tiny.py", JointConfig).optim
    assert [peak_lr(optim, global_batch=batch) for batch in (512, 1024)] == pytest.approx([1e-3, 2e-3], rel=1e-12)


def test_parameters_that_all_decay_have_no_exceptions() -> None:
    with pytest.raises(ValueError, match="no_decay = .* has no effect with decay = 'all': remove one of them"):
        load(CONFIGS / "moco_v3_vit_small.py", JointConfig, overrides=["optim.no_decay=('cls_token',)"])
