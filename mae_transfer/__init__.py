"""A downstream transfer benchmark suite for masked autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_transfer.checkpoints import load_backbone

__all__ = ["__version__", "load_backbone"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_backbone` on first use, so that `import mae_transfer` needs no torch."""
    if name != "load_backbone":
        raise AttributeError(f"module 'mae_transfer' has no attribute {name!r}")
    from mae_transfer.checkpoints import load_backbone

    return load_backbone
