"""The bridge to detectron2: an AdaptedBackbone as its `Backbone`. detectron2 is optional and imported on use only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mae_transfer.adapters.adapted import AdaptedBackbone

ABSENT = (
    "detectron2 is not installed, and it is not on PyPI; with torch installed: "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2', or set engine='torchvision'"
)


def to_detectron2(pyramid: AdaptedBackbone, *, square: int = 0) -> Any:
    """Return a detectron2 `Backbone` around `pyramid`; its parameters are named `pyramid.*`.

    Args:
        pyramid: the backbone with its adapter.
        square: side in pixels to which images are padded (ViTDet: 1024); 0: the next multiple of
            `pyramid.size_divisor`.
    Raises:
        ValueError: detectron2 is not installed; the message explains the installation.
    """
    try:
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import Backbone
    except ImportError as error:
        raise ValueError(ABSENT) from error
    shapes = {
        name: ShapeSpec(channels=pyramid.adapter.channels, stride=stride)
        for name, stride in pyramid.adapter.strides.items()
    }

    class Detectron2Backbone(Backbone):
        """Adapter class; it is defined here because its base class needs the optional import."""

        def __init__(self) -> None:
            super().__init__()
            self.pyramid = pyramid

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            maps: dict[str, Tensor] = self.pyramid(images)
            return maps

        @property
        def size_divisibility(self) -> int:
            return pyramid.size_divisor

        @property
        def padding_constraints(self) -> dict[str, int]:
            return {"square_size": square}

        def output_shape(self) -> dict[str, Any]:
            return dict(shapes)

    return Detectron2Backbone()
