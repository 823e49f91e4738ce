"""Builds the target of a pretraining config and opens the files that it refers to: tokenizer, teacher, fitted basis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mae_transfer import checkpoints
from mae_transfer.core.normalize import Statistics
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import ImageTokenizer, Target
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import AnyTarget, Frame, Teacher

Buffers = Mapping[str, Tensor]


class TargetFiles(NamedTuple):
    """Opens the references of a target."""

    frame: Frame
    saved: Buffers | None = None  # the target's own tensors from a checkpoint; with them a basis needs no file

    def tokenizer(self, reference: str) -> ImageTokenizer:
        """Return the tokenizer of a reference (checkpoints.tokenizers)."""
        from mae_transfer.checkpoints.tokenizers import load_tokenizer

        return load_tokenizer(reference)

    def teacher(self, reference: str) -> Teacher:
        """Return the backbone of a reference (checkpoints.load) as a frozen teacher."""
        loaded = checkpoints.load(reference)
        return Teacher(loaded.backbone, loaded.statistics)

    def basis(self, reference: str) -> Basis:
        """Return the basis in a file, or K random orthonormal directions for "random:K", to try a config."""
        from mae_transfer.checkpoints.tokenizers import load_basis

        if self.saved:
            reference = f"random:{len(self.saved['components'])}"
        kind, count = checkpoints.split(reference, ("random",))
        if kind != "random":
            return load_basis(Path(count))
        if not count.isdigit() or not int(count):
            raise ValueError(f"target.basis = {reference!r}: give a file, or random:K with a number of components K")
        patch, statistics = self.frame.patch, self.frame.statistics
        values, ones = patch**2 * len(statistics.mean), torch.ones(int(count))
        rows = torch.linalg.qr(torch.randn(values, int(count))).Q.T.contiguous()
        return Basis(torch.zeros(values), rows, ones, ones / values, patch, statistics)


def open_target(cfg: AnyTarget, encoder: ViTConfig, statistics: Statistics, *, saved: Buffers | None = None) -> Target:
    """Build the target for this encoder's images.

    Args:
        saved: the target's own tensors from a checkpoint (`buffers_of`). With them a basis needs no file.
    Raises:
        ValueError: a file is missing or does not fit.
    """
    frame = Frame(encoder.patch, encoder.grid(), statistics)
    target = cfg.build(frame, TargetFiles(frame, saved))
    if saved:
        target.load_state_dict({**target.state_dict(), **saved})
    return target


def buffers_of(target: Target) -> dict[str, Tensor]:
    """Return the tensors of a target that a checkpoint stores: its own (a basis), not its tokenizer's or teacher's."""
    kept = target.state_dict().keys()
    return {name: tensor for name, tensor in target.named_buffers(recurse=False) if name in kept}


PREFIXES = frozenset({"dalle", *checkpoints.PREFIXES})
"""Prefixes of the references in a target's options."""


def references_of(cfg: AnyTarget) -> dict[str, str]:
    """Return the references in a target's options by role: "tokenizer", "teacher", "basis"."""
    return {role: getattr(cfg, role) for role in ("tokenizer", "teacher", "basis") if hasattr(cfg, role)}


def digest_of(cfg: AnyTarget) -> str:
    """Return the shortened sha256 of each file that a target refers to; "" if it refers to none.

    A run with another file is another run.
    """
    paths = [file_of(reference) for reference in references_of(cfg).values()]
    return "".join(f"+{path.name}:{checkpoints.sha256(path)[:12]}" for path in paths if path.is_file())


def file_of(reference: str) -> Path:
    """Return the path of the file that a reference names."""
    prefix, rest = checkpoints.split(reference, PREFIXES)
    return Path(rest.partition("@")[2] if prefix == "timm" else rest)


def digest_of_file(reference: str) -> str | None:
    """Return the sha256 of the file that a reference names; None if there is no such file."""
    path = file_of(reference)
    return checkpoints.sha256(path) if path.is_file() else None
