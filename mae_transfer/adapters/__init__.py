"""Adapters turn a backbone's Features into a pyramid.

To add an adapter, write it with its config in a new file, then add the config to AnyAdapter, a config file and a test.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mae_transfer.adapters.adapted import AdaptedBackbone
from mae_transfer.adapters.levels import AdapterConfig
from mae_transfer.adapters.simple_fpn import SimpleFPN, SimpleFPNConfig
from mae_transfer.adapters.tap_fpn import TapFPN, TapFPNConfig

AnyAdapter = Annotated[TapFPNConfig | SimpleFPNConfig, Field(discriminator="name")]

__all__ = ["AdaptedBackbone", "AdapterConfig", "AnyAdapter", "SimpleFPN", "SimpleFPNConfig", "TapFPN", "TapFPNConfig"]
