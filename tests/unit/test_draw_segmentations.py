"""draw/segmentations.py: distinct colours, visible void, and a legend that fits the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mae_transfer.draw.segmentations import MOST_NAMES, SegmentationPicture, paint, palette, save_segmentation, short
from mae_transfer.interfaces import IGNORED


@pytest.mark.parametrize("classes", [2, 20, 150])
def test_no_two_classes_share_a_colour(classes: int) -> None:
    colours = palette(classes)
    assert colours.shape == (classes, 3)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 9 * np.eye(classes)
    assert distances.min() > 0.05


def test_ignored_pixels_are_black_and_others_show_the_image_through_their_colour() -> None:
    image, labels = np.full((1, 3, 3), 255), np.array([[0, 1, IGNORED]])
    found = paint(image, labels, np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[[1.0, 0.4, 0.4], [0.4, 0.4, 0.4], [0.0, 0.0, 0.0]]])


def test_names_with_synonyms_are_shortened() -> None:
    assert [short(name) for name in ("sky", "car, auto, automobile, machine, motorcar")] == ["sky", "car"]
    assert short("a name without any comma that goes on") == "a name without any …"


def test_a_legend_of_long_names_stays_within_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADE20K's names have up to six synonyms. The legend has its maximum of names, all long."""
    labels = torch.arange(MOST_NAMES, dtype=torch.uint8).reshape(4, 6).repeat_interleave(20, 0).repeat_interleave(20, 1)
    legends = []
    write = Figure.savefig

    def writing(figure: Figure, path: Path, *, dpi: int, format: str) -> None:
        write(figure, path, dpi=dpi, format=format)
        (legend,) = figure.legends
        legends.append((legend.get_window_extent(), figure.bbox))

    monkeypatch.setattr(Figure, "savefig", writing)
    names = [f"windowpane number {k}, window, pane, and so on" for k in range(150)]
    save_segmentation(
        tmp_path / "0.png",
        SegmentationPicture(torch.zeros(3, 80, 120, dtype=torch.uint8), labels, labels, "a.jpg"),
        names,
    )
    ((legend, picture),) = legends
    assert legend.x0 >= picture.x0
    assert legend.x1 <= picture.x1
    assert Image.open(tmp_path / "0.png").width == 1200


def test_a_map_without_classes_can_be_drawn(tmp_path: Path) -> None:
    void = torch.full((8, 9), IGNORED, dtype=torch.uint8)
    save_segmentation(
        tmp_path / "deep" / "0.png",
        SegmentationPicture(torch.zeros(3, 8, 9, dtype=torch.uint8), void, void * 0, "a.jpg"),
        ("x", "y"),
    )
    assert (tmp_path / "deep" / "0.png").is_file()
