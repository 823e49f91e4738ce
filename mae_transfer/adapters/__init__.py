"""Adapters turn a backbone's Features into a pyramid. A new adapter is a file, a line here, a config and a test."""

from __future__ import annotations

from collections.abc import Callable

from mae_transfer.adapters.adapted import AdaptedBackbone
from mae_transfer.adapters.simple_fpn import SimpleFPN
from mae_transfer.adapters.tap_fpn import TapFPN
from mae_transfer.interfaces import Adapter

ADAPTERS: dict[str, Callable[..., Adapter]] = {
    "tap_fpn": TapFPN,
    "simple_fpn": SimpleFPN,
}

__all__ = ["ADAPTERS", "AdaptedBackbone", "SimpleFPN", "TapFPN"]
