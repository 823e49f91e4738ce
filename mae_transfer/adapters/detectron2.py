"""The bridge to detectron2: an AdaptedBackbone as its `Backbone`. detectron2 is imported here, when it is asked for, and is not required."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mae_transfer.adapters.adapted import AdaptedBackbone

ABSENT = (
    "detectron2 is not installed, and it is not on PyPI; with torch installed: "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2', or take engine='torchvision'"
)


def to_detectron2(pyramid: AdaptedBackbone, *, square: int = 0) -> Any:
    """Return a detectron2 `Backbone` that runs `pyramid`, whose parameters it holds as `pyramid.*`.

    square: side in pixels that images are padded to (ViTDet: 1024); 0: to the next multiple of `pyramid.size_divisor`.
    Raises ValueError where detectron2 is not installed, saying how to get it.
    """
    try:
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import Backbone
    except ImportError as error:
        raise ValueError(ABSENT) from error
    shapes = {
        name: ShapeSpec(channels=pyramid.out_channels, stride=stride)
        for name, stride in pyramid.adapter.strides.items()
    }

    class Bridge(Backbone):  # type: ignore[misc]
        """The base class is detectron2's, so the class is made where that is at hand."""

        def __init__(self) -> None:
            super().__init__()
            self.pyramid = pyramid

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return self.pyramid(images)  # type: ignore[no-any-return]

        @property
        def size_divisibility(self) -> int:
            return pyramid.size_divisor

        @property
        def padding_constraints(self) -> dict[str, int]:
            return {"square_size": square}

        def output_shape(self) -> dict[str, Any]:
            return dict(shapes)

    return Bridge()
