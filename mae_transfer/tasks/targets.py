"""Targets as a pretraining config names them: the task opens what a target can only refer to (a tokenizer, a teacher, a fitted basis)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mae_transfer import checkpoints
from mae_transfer.checkpoints.basis import load_basis
from mae_transfer.checkpoints.tokenizers import load_tokenizer
from mae_transfer.config import Spec, build, check
from mae_transfer.core.normalize import Statistics
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Target, Tokenizer
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import TARGETS, Frame, Teacher

Buffers = Mapping[str, Tensor]


def open_tokenizer(frame: Frame, reference: str) -> Tokenizer:
    """Return the tokenizer that a reference names (checkpoints.tokenizers)."""
    return load_tokenizer(reference)


def open_teacher(frame: Frame, reference: str) -> Teacher:
    """Return any backbone (checkpoints.load) as a frozen teacher."""
    loaded = checkpoints.load(reference)
    return Teacher(loaded.backbone, loaded.statistics)


def open_basis(frame: Frame, reference: str) -> Basis:
    """Return the basis in a file; "random:K": K orthonormal directions that mean nothing, to try a config."""
    kind, count = checkpoints.split(reference, ("random",))
    if kind != "random":
        return load_basis(Path(count))
    if not count.isdigit() or not int(count):
        raise ValueError(f"no basis {reference!r}: give a file, or random:K with a number of components K")
    values = frame.patch**2 * len(frame.statistics.mean)
    rows = torch.linalg.qr(torch.randn(values, int(count))).Q.T.contiguous()
    ones = torch.ones(int(count))
    return Basis(torch.zeros(values), rows, ones, ones / values, frame.patch, frame.statistics)


OPENERS: Mapping[str, Callable[[Frame, str], object]] = {
    "tokenizer": open_tokenizer,
    "teacher": open_teacher,
    "basis": open_basis,
}
"""By the name of a target's option: what the string in the config becomes."""


def check_target(spec: Spec) -> Spec:
    """Raise ValueError unless spec names a target with its options."""
    return check(TARGETS, spec, openers=OPENERS)


def open_target(spec: Spec, encoder: ViTConfig, statistics: Statistics, *, saved: Buffers | None = None) -> Target:
    """Build the target for this encoder's images.

    Args:
        saved: the target's own tensors out of a checkpoint (`buffers_of`): a basis then needs no file.
    Raises:
        ValueError: a file is missing or does not fit.
    """
    frame = Frame(encoder.patch, encoder.grid(), statistics)
    openers: dict[str, Callable[[str], object]] = {name: partial(opener, frame) for name, opener in OPENERS.items()}
    if saved and "basis" in spec.options:
        openers["basis"] = lambda _: open_basis(frame, f"random:{len(saved['components'])}")
    target = build(TARGETS, spec, frame, openers=openers)
    if saved:
        assert isinstance(target, nn.Module)
        target.load_state_dict({**target.state_dict(), **saved})
    return target


def buffers_of(target: Target) -> dict[str, Tensor]:
    """Return what of a target a checkpoint keeps: its own tensors (a basis), not those of the tokenizer or teacher that it refers to."""
    if not isinstance(target, nn.Module):
        return {}
    kept = target.state_dict().keys()
    return {name: tensor for name, tensor in target.named_buffers(recurse=False) if name in kept}


PREFIXES = frozenset({"dalle", *checkpoints.LAYOUTS})
"""Prefixes of the references in a target's options."""


def references_of(spec: Spec) -> dict[str, str]:
    """Return the references in a target's options, by their role."""
    return {name: str(spec.options[name]) for name in OPENERS if spec.options.get(name)}


def digest_of(spec: Spec) -> str:
    """Return the sha256s of the files that a target refers to, shortened, "" where it refers to none: another file is another run."""
    parted = [checkpoints.split(reference, PREFIXES) for reference in references_of(spec).values()]
    paths = [Path(rest.partition("@")[2] if prefix == "timm" else rest) for prefix, rest in parted]
    return "".join(f"+{path.name}:{checkpoints.sha256(path)[:12]}" for path in paths if path.is_file())
