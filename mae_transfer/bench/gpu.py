"""The benchmark `gpu`: steps of all tasks on a GPU, each beside its peer in another library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mae_transfer.bench import classify, detect, joint, pretrain, segment
from mae_transfer.bench.harness import Comparison, compare
from mae_transfer.bench.options import Mode, Workload
from mae_transfer.engine.profile import matmul_peak
from mae_transfer.engine.state import Precision


class Case(NamedTuple):
    """A step, and who runs it: ours first, then its peers."""

    step: str
    comparison: Comparison
    contestants: tuple[str, ...]
    work: Workload
    modes: tuple[Mode, ...] = ("compiled",)  # of the peers; ours has the last of them
    own: int = 1  # how many of the contestants are this package's


OURS, LIGHTLY, TRANSFORMERS = "mae_transfer", "lightly + timm", "transformers"
BOTH: tuple[Mode, ...] = ("eager", "compiled")  # for peers that may not compile
BFLOAT16 = Workload(dtype="bfloat16")
CASES = (
    Case(
        "pretrain B/16", pretrain.COMPARISON, (*pretrain.OURS, TRANSFORMERS, LIGHTLY), replace(BFLOAT16, batch=256),
        own=len(pretrain.OURS),
    ),
    Case("pretrain L/16", pretrain.COMPARISON, (OURS, TRANSFORMERS), replace(BFLOAT16, size="vit_large", batch=128)),
    Case(
        "pretrain H/14", pretrain.COMPARISON, (OURS, TRANSFORMERS),
        replace(BFLOAT16, size="vit_huge", patch=14, batch=64),
    ),
    Case(
        "fine-tune L/16", classify.COMPARISON, (classify.FINETUNE, classify.PEER),
        replace(BFLOAT16, size="vit_large", batch=64),
    ),
    Case(
        "DINO S/16", joint.COMPARISONS["dino"], (OURS, LIGHTLY), replace(BFLOAT16, size="vit_small", batch=64),
        ("eager",),
    ),
    Case(
        "ViTDet-B, 1024 px", detect.COMPARISON, (detect.OURS, detect.CHANNELS, detect.FLEX, detect.PEER),
        replace(BFLOAT16, image=1024, batch=1), BOTH, own=3,
    ),
    Case(
        "UperNet-B, 512 px", segment.COMPARISON, (segment.OURS, segment.PEER),
        replace(BFLOAT16, image=512, batch=8), BOTH,
    ),
)  # fmt: skip
TINY: dict[str, Any] = {"size": "vit_tiny", "patch": 16, "image": 64, "batch": 2, "dtype": "float32"}


def run(
    device: torch.device, *, tiny: bool, rounds: int, steps: int, cases: Sequence[Case] = CASES
) -> Iterator[dict[str, Any]]:
    """Measure the matmul peak of the device, then race each case; yield a record per contestant and mode.

    tiny: small models on small images, eagerly, to see on any machine that everything runs.
    """
    kinds: tuple[Precision, ...] = ("float32",) if tiny else ("bfloat16", "float32")
    for kind in kinds:
        yield {"step": "matmul", "name": kind, "matmul_peak_gflops_per_s": matmul_peak(device, kind) / 1e9}
    for case in cases:
        contestants = {name: case.comparison.contestants[name] for name in case.contestants}
        work = replace(case.work, device=str(device), **(TINY if tiny else {}))
        modes: tuple[Mode, ...] = ("eager",) if tiny else case.modes
        own = dict.fromkeys(case.contestants[: case.own], modes[-1:])
        comparison = Comparison(contestants, "ratio_to_faster_peer", own=case.own)
        found = compare(
            comparison, work, modes=dict.fromkeys(case.contestants, modes) | own, rounds=rounds, steps=steps
        )
        yield from ({"step": case.step, "batch": work.batch, **record} for record in found)


def named(steps: Sequence[str] | None) -> list[Case]:
    """Return the cases of these steps; all for None. ValueError for a step that no case has."""
    known = [case.step for case in CASES]
    if wrong := set(steps or ()).difference(known):
        raise ValueError(f"--only {sorted(wrong)[0]!r} is not a case: name some of {known}")
    return [case for case in CASES if steps is None or case.step in steps]
