"""draw/reconstructions.py: a sheet can be written whatever the images' channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.draw.reconstructions import save_sheet


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_a_sheet_shows_three_channels_or_one_in_grey(channels, shown, tmp_path):
    rows = torch.linspace(0, 1, channels)[None, None, :, None, None].expand(1, 1, channels, 8, 8)
    save_sheet(tmp_path / "sheet.png", rows, enlarge_to=8)
    middle = np.asarray(Image.open(tmp_path / "sheet.png"))[4, 4]
    assert middle.tolist() == [round(255 * float(rows[0, 0, channel, 0, 0])) for channel in shown]
