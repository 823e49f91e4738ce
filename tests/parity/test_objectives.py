"""Objectives of joint embedding against formulas written anew from the papers, and against lightly's losses.

lightly is no dependency: its tests run where it is installed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_transfer.config import validate
from mae_transfer.interfaces import Embedded, Hidden, World
from mae_transfer.objectives import Contrast, ContrastConfig, Distill, DistillConfig

B, K, D, N, NARROW = 6, 33, 8, 9, 4  # images, prototypes, width, patches of a wide and of a narrow view
TYPES = [torch.float32, torch.float64]


def tight(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}


def distill(**options: Any) -> Distill:
    return validate({"name": "distill", "out": K, **options}, DistillConfig, where="test").build(World())


def contrast(**options: Any) -> Contrast:
    return validate({"name": "contrast", "out": D, **options}, ContrastConfig, where="test").build(World())


def probabilities(x: Tensor, temperature: float) -> Tensor:
    powers = ((x - x.max()) / temperature).exp()
    return powers / powers.sum()


PLACES: tuple[tuple[int, ...], ...] = ((), (4,), (2, 7), (0, 3, 8))
"""Hidden patches of the views in turn, of N = 9."""


def cross_entropy(true: Tensor, student: Tensor) -> Tensor:
    """-sum p log q of two vectors, q = softmax(student / 0.1)."""
    return -(true * (student / 0.1 - (student / 0.1).exp().sum().log())).sum()


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def views(dtype: torch.dtype, *, seed: int = 0, narrow: int = 3) -> tuple[Embedded, Embedded]:
    """Return what student and teacher make of two wide and some narrow views."""
    sizes = [N, N, *[NARROW] * narrow]
    student = Embedded(
        drawn(2, B, D, dtype=dtype, seed=seed),
        drawn(2 + narrow, B, K, dtype=dtype, seed=seed + 1).requires_grad_(),
        tuple(drawn(B, n, K, dtype=dtype, seed=seed + 10 + i).requires_grad_() for i, n in enumerate(sizes)),
        tuple(drawn(B, n, D, dtype=dtype, seed=seed + 20 + i) for i, n in enumerate(sizes)),
    )
    patches = tuple(drawn(B, N, K, dtype=dtype, seed=seed + 30 + i) for i in range(2))
    teacher = Embedded(
        drawn(2, B, D, dtype=dtype, seed=seed + 2),
        drawn(2, B, K, dtype=dtype, seed=seed + 3),
        patches,
        tuple(drawn(B, N, D, dtype=dtype, seed=seed + 40 + i) for i in range(2)),
        torch.stack(patches).mean(dim=(0, 1, 2)),
    )
    return student, teacher


def masks(dtype: torch.dtype) -> Hidden:
    """Return the masks of two views of B images."""
    pairs = [
        (number * N + place, 1 / len(PLACES[number % 4])) for number in range(2 * B) for place in PLACES[number % 4]
    ]
    ids, weight = zip(*pairs, strict=True)
    return Hidden(torch.tensor(ids), torch.tensor(weight, dtype=dtype))


def at(hidden: Hidden, embedded: Embedded) -> Embedded:
    """Return the same with the hidden patches alone."""
    patches = torch.stack(embedded.patches[:2]).flatten(0, 2)[hidden.ids]
    return Embedded(embedded.features, embedded.image, (patches,), (), embedded.patch_mean)


def of_images(student: Embedded, teacher: Embedded, centre: Tensor, temperature: float) -> Tensor:
    """DINO, algorithm 1 with multi-crop: the mean over all pairs of different views."""
    terms = [
        cross_entropy(probabilities(teacher.image[q, b] - centre, temperature), student.image[v, b])
        for q in range(2)
        for v in range(len(student.image))
        if v != q
        for b in range(B)
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("dtype", TYPES)
def test_dino_over_three_steps(dtype: torch.dtype) -> None:
    objective, centre = distill().to(dtype), torch.zeros(K, dtype=dtype)
    for step in range(3):
        student, teacher = views(dtype, seed=100 * step)
        loss, expected = objective(student, teacher, None, 0.0), of_images(student, teacher, centre, 0.04)
        torch.testing.assert_close(loss, expected, **tight(dtype))
        ours, theirs = (torch.autograd.grad(one, student.image)[0] for one in (loss, expected))
        torch.testing.assert_close(ours, theirs, **tight(dtype))
        objective.settle()
        centre = 0.9 * centre + 0.1 * teacher.image.flatten(0, 1).mean(dim=0)
        torch.testing.assert_close(objective.centres[0], centre, **tight(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_ibot_adds_the_hidden_patches_of_the_same_view(dtype: torch.dtype) -> None:
    objective, hidden = distill(patches="masked").to(dtype), masks(dtype)
    centres = torch.zeros(2, K, dtype=dtype)
    for step in range(2):
        student, teacher = views(dtype, seed=100 * step)
        loss = objective(at(hidden, student), at(hidden, teacher), hidden, 0.0)
        expected = of_images(student, teacher, centres[0], 0.04)
        for view in range(2):
            for b in range(B):
                terms = [
                    cross_entropy(
                        probabilities(teacher.patches[view][b, m] - centres[1], 0.04), student.patches[view][b, m]
                    )
                    for m in PLACES[(view * B + b) % 4]
                ]
                expected = expected + (torch.stack(terms).mean() if terms else 0.0) / (2 * B)
        torch.testing.assert_close(loss, expected, **tight(dtype))
        objective.settle()
        means = torch.stack([teacher.image.mean(dim=(0, 1)), torch.cat(teacher.patches).mean(dim=(0, 1))])
        centres = 0.9 * centres + 0.1 * means
        torch.testing.assert_close(objective.centres, centres, **tight(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_esvit_matches_each_patch_with_the_most_similar_one(dtype: torch.dtype) -> None:
    objective = distill(patches="matched", shared=False).to(dtype)
    student, teacher = views(dtype)
    loss = objective(student, teacher, None, 0.0)
    per_pair = []
    for q in range(2):
        for v in range(5):
            if v == q:
                continue
            terms = []
            for b in range(B):
                for i, feature in enumerate(student.tokens[v][b]):
                    cosines = torch.stack([torch.cosine_similarity(feature, t, dim=0) for t in teacher.tokens[q][b]])
                    best = teacher.patches[q][b, int(cosines.argmax())]
                    terms.append(cross_entropy(probabilities(best, 0.04), student.patches[v][b, i]))
            per_pair.append(torch.stack(terms).mean())
    expected = 0.5 * of_images(student, teacher, torch.zeros(K, dtype=dtype), 0.04) + 0.5 * torch.stack(per_pair).mean()
    torch.testing.assert_close(loss, expected, **tight(dtype))


def info_nce(query: Tensor, keys: Tensor, true: int, temperature: float) -> Tensor:
    similar = torch.stack([torch.cosine_similarity(query, key, dim=0) for key in keys]) / temperature
    return similar.exp().sum().log() - similar[true]


@pytest.mark.parametrize("dtype", TYPES)
def test_moco_v3_is_algorithm_1(dtype: torch.dtype) -> None:
    """ctr(q1, k2) + ctr(q2, k1), each 2 tau CE over the batch (arXiv 2104.02057)."""
    queries = drawn(2, B, D, dtype=dtype, seed=1).requires_grad_()
    keys = drawn(2, B, D, dtype=dtype, seed=2)
    loss = contrast()(Embedded(queries, queries), Embedded(keys, keys), None, 0.0)
    ways = [
        torch.stack([info_nce(queries[one, b], keys[1 - one], b, 0.2) for b in range(B)]).mean() * 2 * 0.2
        for one in range(2)
    ]
    torch.testing.assert_close(loss, sum(ways), **tight(dtype))
    ours, theirs = (torch.autograd.grad(value, queries)[0] for value in (loss, sum(ways)))
    torch.testing.assert_close(ours, theirs, **tight(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_moby_takes_negatives_from_the_queue_of_the_other_view(dtype: torch.dtype) -> None:
    objective = contrast(queue=2 * B + 1, scaled=False).to(dtype)
    objective.queue.div_(objective.queue.norm(dim=2, keepdim=True))  # drawn in float32
    queues = [list(objective.queue[view].clone()) for view in range(2)]
    for step in range(3):
        queries, keys = (drawn(2, B, D, dtype=dtype, seed=10 * step + i) for i in range(2))
        loss = objective(Embedded(queries, queries), Embedded(keys, keys), None, 0.0)
        objective.settle()
        ways = [
            torch.stack(
                [info_nce(queries[one, b], torch.stack([keys[1 - one, b], *queues[1 - one]]), 0, 0.2) for b in range(B)]
            ).mean()
            for one in range(2)
        ]
        torch.testing.assert_close(loss, sum(ways), **tight(dtype))
        for view in range(2):
            queues[view] = [*(key / key.norm() for key in keys[view]), *queues[view]][: 2 * B + 1]
            torch.testing.assert_close(objective.queue[view], torch.stack(queues[view]), **tight(dtype))


def test_the_temperature_of_the_teacher_changes_once_per_epoch() -> None:
    """np.linspace(0.04, 0.07, 30), then 0.07 (main_dino.py)."""
    cfg = DistillConfig(warmup_temperature=0.04, teacher_temperature=0.07, warmup_epochs=30)
    table = [0.04 + 0.03 * epoch / 29 for epoch in range(30)] + [0.07] * 5
    assert [cfg.temperature(epoch + 0.9) for epoch in range(35)] == pytest.approx(table)
    assert DistillConfig().temperature(0.0) == 0.04


def test_dino_of_lightly() -> None:
    theirs = pytest.importorskip("lightly.loss").DINOLoss(output_dim=K, warmup_teacher_temp_epochs=2)
    ours = distill(warmup_epochs=2)
    for epoch in range(4):
        student, teacher = views(torch.float32, seed=100 * epoch)
        expected = theirs(list(teacher.image), list(student.image), epoch=epoch)
        torch.testing.assert_close(ours(student, teacher, None, epoch), expected, rtol=1e-5, atol=1e-6)
        ours.settle()  # later losses depend on the centre


def test_the_patches_of_ibot_of_lightly() -> None:
    """Its centre is that of the hidden patches (DINOv2), so only the first step is the same."""
    theirs = pytest.importorskip("lightly.loss").IBOTPatchLoss(output_dim=K, teacher_temp=0.04)
    ours, hidden = distill(patches="masked"), masks(torch.float32)
    student, teacher = views(torch.float32)
    mask = torch.zeros(2 * B, N, dtype=torch.bool)
    for number in range(2 * B):
        mask[number, list(PLACES[number % 4])] = True
    seen, true = (torch.cat(one.patches[:2])[mask] for one in (student, teacher))
    expected = theirs(teacher_out=true, student_out=seen, mask=mask.view(2 * B, 3, 3))
    with_patches = ours(at(hidden, student), at(hidden, teacher), hidden, 0.0)
    without = distill()(student, teacher, None, 0.0)
    torch.testing.assert_close(with_patches - without, expected, rtol=1e-5, atol=1e-6)


def test_the_metrics_tell_both_kinds_of_collapse() -> None:
    objective = distill()
    features = torch.zeros(2, B, D)

    def measured(image: Tensor) -> list[float]:
        values = objective.metrics(Embedded(features, image), Embedded(features, image), 0.0)
        return [float(value) for value in values.values()]

    one, equal, useful = torch.zeros(2, B, K), torch.zeros(2, B, K), torch.zeros(2, B, K)
    one[..., 5] = 9.0
    useful[:, torch.arange(B), torch.arange(B)] = 9.0
    assert measured(one) == pytest.approx([0.0, 0.0], abs=1e-6)
    assert measured(equal) == pytest.approx([1.0, 1.0])
    assert measured(useful) == pytest.approx([0.0, math.log(B) / math.log(K)], abs=1e-6)
