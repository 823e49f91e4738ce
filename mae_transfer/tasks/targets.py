"""Builds the target of a pretraining config and opens the files that it refers to: tokenizer, teacher, fitted basis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mae_transfer import checkpoints
from mae_transfer.config import Spec, build, check
from mae_transfer.core.normalize import Statistics
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import ImageTokenizer, Target
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import TARGETS, Frame, Teacher

Buffers = Mapping[str, Tensor]


def open_tokenizer(frame: Frame, reference: str) -> ImageTokenizer:
    """Return the tokenizer of a reference (checkpoints.tokenizers)."""
    from mae_transfer.checkpoints.tokenizers import load_tokenizer

    return load_tokenizer(reference)


def open_teacher(frame: Frame, reference: str) -> Teacher:
    """Return the backbone of a reference (checkpoints.load) as a frozen teacher."""
    loaded = checkpoints.load(reference)
    return Teacher(loaded.backbone, loaded.statistics)


def open_basis(frame: Frame, reference: str) -> Basis:
    """Return the basis in a file, or K random orthonormal directions for "random:K", to try a config."""
    from mae_transfer.checkpoints.tokenizers import load_basis

    kind, count = checkpoints.split(reference, ("random",))
    if kind != "random":
        return load_basis(Path(count))
    if not count.isdigit() or not int(count):
        raise ValueError(f"target.basis = {reference!r}: give a file, or random:K with a number of components K")
    values = frame.patch**2 * len(frame.statistics.mean)
    rows = torch.linalg.qr(torch.randn(values, int(count))).Q.T.contiguous()
    ones = torch.ones(int(count))
    return Basis(torch.zeros(values), rows, ones, ones / values, frame.patch, frame.statistics)


OPENERS: Mapping[str, Callable[[Frame, str], object]] = {
    "tokenizer": open_tokenizer,
    "teacher": open_teacher,
    "basis": open_basis,
}
"""Functions that open a reference, by the name of the target's option that holds it."""


def check_target(spec: Spec) -> Spec:
    """Raise ValueError unless `spec` has the name of a target and valid options."""
    return check(TARGETS, spec, openers=OPENERS)


def open_target(spec: Spec, encoder: ViTConfig, statistics: Statistics, *, saved: Buffers | None = None) -> Target:
    """Build the target for this encoder's images.

    Args:
        saved: the target's own tensors from a checkpoint (`buffers_of`). With them a basis needs no file.
    Raises:
        ValueError: a file is missing or does not fit.
    """
    frame = Frame(encoder.patch, encoder.grid(), statistics)
    openers: dict[str, Callable[[str], object]] = {name: partial(opener, frame) for name, opener in OPENERS.items()}
    if saved and "basis" in spec.options:
        openers["basis"] = lambda _: open_basis(frame, f"random:{len(saved['components'])}")
    target = build(TARGETS, spec, frame, openers=openers)
    if saved:
        target.load_state_dict({**target.state_dict(), **saved})
    return target


def buffers_of(target: Target) -> dict[str, Tensor]:
    """Return the tensors of a target that a checkpoint stores: its own (a basis), not its tokenizer's or teacher's."""
    kept = target.state_dict().keys()
    return {name: tensor for name, tensor in target.named_buffers(recurse=False) if name in kept}


PREFIXES = frozenset({"dalle", *checkpoints.PREFIXES})
"""Prefixes of the references in a target's options."""


def references_of(spec: Spec) -> dict[str, str]:
    """Return the references in a target's options by role: "tokenizer", "teacher", "basis"."""
    return {name: str(spec.options[name]) for name in OPENERS if spec.options.get(name)}


def digest_of(spec: Spec) -> str:
    """Return the shortened sha256 of each file that a target refers to; "" if it refers to none.

    A run with another file is another run.
    """
    paths = [file_of(reference) for reference in references_of(spec).values()]
    return "".join(f"+{path.name}:{checkpoints.sha256(path)[:12]}" for path in paths if path.is_file())


def file_of(reference: str) -> Path:
    """Return the path of the file that a reference names."""
    prefix, rest = checkpoints.split(reference, PREFIXES)
    return Path(rest.partition("@")[2] if prefix == "timm" else rest)


def digest_of_file(reference: str) -> str | None:
    """Return the sha256 of the file that a reference names; None if there is no such file."""
    path = file_of(reference)
    return checkpoints.sha256(path) if path.is_file() else None
