"""Targets as a pretraining config names them: the task opens what a target can only refer to (a tokenizer, a teacher, a fitted basis)."""

from __future__ import annotations

from mae_transfer.config import Openers, Spec, build, check
from mae_transfer.core.normalize import Statistics
from mae_transfer.interfaces import Target
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import TARGETS, Frame

OPENERS: Openers = {}


def check_target(spec: Spec) -> Spec:
    """Raise ValueError unless spec names a target with its options."""
    return check(TARGETS, spec, openers=OPENERS)


def open_target(spec: Spec, encoder: ViTConfig, statistics: Statistics) -> Target:
    """Build the target for this encoder's images; ValueError where they do not fit each other."""
    return build(TARGETS, spec, Frame(encoder.patch, encoder.grid(), statistics), openers=OPENERS)
