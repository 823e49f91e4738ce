"""Objectives of joint embedding: how a student must agree with its teacher.

To add an objective, write an Objective and its config in a new file, then add the config to AnyObjective, a config file
and a test. models/joint.py stays as it is.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mae_transfer.objectives.contrast import Contrast, ContrastConfig
from mae_transfer.objectives.distill import Distill, DistillConfig

AnyObjective = Annotated[DistillConfig | ContrastConfig, Field(discriminator="name")]

__all__ = ["AnyObjective", "Contrast", "ContrastConfig", "Distill", "DistillConfig"]
