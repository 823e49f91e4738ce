"""draw/reconstructions.py: a sheet can be written whatever the images' channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.draw.reconstructions import HEADER, PANELS, save_sheet


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_a_sheet_shows_three_channels_or_one_in_grey(channels, shown, tmp_path):
    rows = torch.linspace(0, 1, channels)[None, None, :, None, None].expand(1, 1, channels, 8, 8)
    save_sheet(tmp_path / "sheet.png", rows, ["image"], enlarge_to=8)
    middle = np.asarray(Image.open(tmp_path / "sheet.png"))[HEADER + 4, 4]
    assert middle.tolist() == [round(255 * float(rows[0, 0, channel, 0, 0])) for channel in shown]


def test_each_panel_has_its_title_above_it(tmp_path):
    save_sheet(tmp_path / "sheet.png", torch.ones(2, len(PANELS), 3, 8, 8), PANELS)
    header = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))[:HEADER]
    inked = [bool((panel < 128).any()) for panel in np.array_split(header, len(PANELS), axis=1)]
    assert inked == [True] * len(PANELS)
    assert header[:, -4:].min() == 255  # the last title ends within its panel
