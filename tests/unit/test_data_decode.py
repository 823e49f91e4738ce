"""decode: every odd image that turns up in a data set becomes upright RGB, or an error that names it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.data.decode import UnreadableImage, decode

HEIGHT, WIDTH = 24, 36


def picture() -> Image.Image:
    """A smooth picture, red growing to the right and green downwards, so that orientation and channels show."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x * 7, y * 10, np.full_like(x, 60)], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


def test_jpeg_equals_pil_bit_for_bit() -> None:
    data = encoded(picture(), "JPEG", quality=90)
    image = decode(data, where="a.jpg")
    assert image.dtype == torch.uint8
    assert torch.equal(image, pixels(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_read_whatever_the_name_says(kind: str) -> None:
    assert distance(decode(encoded(picture(), kind), where="png_named.jpg"), pixels(picture())) < 4


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")]
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    image = picture().convert(mode)
    tolerance = 4 if kind == "JPEG" else 0.6
    assert distance(decode(encoded(image, kind), where="odd"), pixels(image)) < tolerance


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 70).reshape(HEIGHT, WIDTH)
    image = decode(encoded(Image.fromarray(values), "PNG"), where="deep.png")
    assert torch.equal(image, torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, -1, -1))


def test_transparent_pixels_show_white() -> None:
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert decode(encoded(image, "PNG"), where="glass.png").min() == 255
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encoded(palette, "PNG", transparency=1), where="palette.png").min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    image = decode(encoded(picture(), kind, exif=exif), where="turned")
    assert image.shape == (3, WIDTH, HEIGHT)
    assert distance(image, pixels(picture().transpose(Image.Transpose.ROTATE_270))) < 4


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), where="moving.gif")
    assert image[:, 0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), "red"), "JPEG"), where="dot.jpg").shape == (3, 1, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_truncated_files_are_named(kind: str, share: float) -> None:
    data = encoded(picture(), kind)
    with pytest.raises(UnreadableImage, match="some/cut"):
        decode(data[: int(len(data) * share)], where="some/cut.jpg")


def test_text_is_named() -> None:
    with pytest.raises(UnreadableImage, match=r"page.jpg.* no known image format"):
        decode(b"<html>404</html>", where="page.jpg")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(UnreadableImage, match=r"depth.tif.*no known range"):
        decode(encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF"), where="depth.tif")


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", 400), ("JPEG", 800), ("PNG", 400)])
def test_huge_images_are_refused_before_they_are_decoded(kind: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # PIL warns above the limit and raises above twice the limit: an error for us both times
    with pytest.raises(UnreadableImage, match=r"bomb.jpg.*864 pixels.*MAX_IMAGE_PIXELS"):
        decode(encoded(picture(), kind), where="bomb.jpg")


def test_without_a_fast_decoder_pil_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "JPEG")
    fast = decode(data, where="a.jpg")
    monkeypatch.setattr("mae_transfer.data.decode._fast_jpeg", None)
    assert torch.equal(decode(data, where="a.jpg"), fast)


def test_torchcodec_is_found_when_torchvision_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchcodec.decoders", reason="torchcodec does not load; it needs the libraries of FFmpeg", exc_type=(RuntimeError, OSError))
    from torchvision import io as torchvision_io

    from mae_transfer.data.decode import _find_fast_jpeg

    data = encoded(picture(), "JPEG")
    expected = decode(data, where="a.jpg")
    monkeypatch.delattr(torchvision_io, "decode_jpeg")
    monkeypatch.setattr("mae_transfer.data.decode._fast_jpeg", _find_fast_jpeg())
    assert torch.equal(decode(data, where="a.jpg"), expected)
