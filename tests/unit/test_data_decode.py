"""decode: every unusual image becomes upright RGB, or an error that names the file."""

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from mae_transfer.data.decode import UnreadableImage, decode, decode_file, size_of
from mae_transfer.data.reports import collect_notes

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
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")],
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
    with pytest.raises(UnreadableImage, match=r"page.jpg.* are not in a known image format"):
        decode(b"<html>404</html>", where="page.jpg")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(UnreadableImage, match=r"depth.tif.*no known range"):
        decode(encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF"), where="depth.tif")


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", 400), ("JPEG", 800), ("PNG", 400)])
def test_huge_images_are_refused_before_they_are_decoded(
    kind: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", limit
    )  # PIL warns above the limit and raises above twice the limit: an error for us both times
    with pytest.raises(UnreadableImage, match=r"bomb.jpg.*864 pixels.*MAX_IMAGE_PIXELS"):
        decode(encoded(picture(), kind), where="bomb.jpg")


def test_without_a_fast_decoder_pil_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "JPEG")
    fast = decode(data, where="a.jpg")
    monkeypatch.setattr("mae_transfer.data.decode._fast_jpeg", None)
    assert torch.equal(decode(data, where="a.jpg"), fast)


def test_torchcodec_is_found_when_torchvision_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "torchcodec.decoders",
        reason="torchcodec does not load; it needs the libraries of FFmpeg",
        exc_type=(RuntimeError, OSError),
    )
    from torchvision import io as torchvision_io

    from mae_transfer.data.decode import _find_fast_jpeg

    data = encoded(picture(), "JPEG")
    expected = decode(data, where="a.jpg")
    monkeypatch.delattr(torchvision_io, "decode_jpeg")
    monkeypatch.setattr("mae_transfer.data.decode._fast_jpeg", _find_fast_jpeg())
    assert torch.equal(decode(data, where="a.jpg"), expected)


ISSUE = b"\0\x08\0\x02\x01\x12\0\x03"  # an EXIF that PIL raises on


def with_metadata(kind: str, turned: int = 1) -> bytes:
    """The picture with EXIF, a colour profile, a comment, XMP and texts, as far as the format has them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0132] = turned, "hello", "2020:01:01 00:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "hello" * 20)
    options = {
        "JPEG": {"exif": exif, "icc_profile": profile, "comment": b"hello" * 20, "xmp": b"<x/>", "dpi": (72, 72)},
        "PNG": {"exif": exif, "icc_profile": profile, "pnginfo": texts},
        "TIFF": {"exif": exif, "icc_profile": profile, "description": "hello" * 20},
        "WEBP": {"exif": exif, "icc_profile": profile, "xmp": b"<x/>", "lossless": True},
        "AVIF": {"exif": exif, "icc_profile": profile, "quality": 100},
        "GIF": {"comment": b"hello" * 20},
        "BMP": {},
    }
    return encoded(picture(), kind, **options[kind])


def test_the_png_of_the_issue_is_used_and_noted() -> None:
    sound = encoded(picture(), "PNG")
    data = encoded(picture(), "PNG", exif=ISSUE)
    with collect_notes() as notes:
        image = decode(data, where="a.png")
    assert torch.equal(image, decode(sound, where="sound.png"))
    (message,) = notes
    assert message.startswith("a.png: its EXIF cannot be read")
    assert message.endswith("(its pixels are used)")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_broken_exif_leaves_the_pixels_unchanged(kind: str) -> None:
    sound = decode(with_metadata(kind), where="sound")
    data = with_metadata(kind)
    start = max(data.find(b"MM\0*", 8), data.find(b"II*\0", 8))
    if kind == "TIFF":  # whose directory is its EXIF: the description's place is broken
        at = data.index(b"\x0e\x01\x02\x00")
        broken = data[: at + 8] + b"\xff" * 4 + data[at + 12 :]
    else:
        broken = data[: start + 4] + b"\xff" * 6 + data[start + 10 :]
    with collect_notes() as notes:
        assert torch.equal(decode(broken, where="broken"), sound)
    assert len(notes) == 1 or kind == "JPEG", "PIL reads a JPEG's broken EXIF as none"


def metadata_of(data: bytes) -> list[int]:
    """The positions of bytes that do not describe pixels."""
    parts = [
        b"hello" * 20,
        b"hello",
        b"<x/>",
        b"2020:01:01 00:00:00",
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ]
    return [place for part in parts if (start := data.find(part)) >= 0 for place in range(start, start + len(part))]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_noise_in_any_metadata_leaves_the_pixels_as_they_are(kind: str) -> None:
    data, rng = with_metadata(kind), random.Random(0)
    sound, places = decode(data, where="sound"), metadata_of(data)
    for _ in range(40):
        broken = bytearray(data)
        for place in rng.sample(places, rng.choice([1, 2, 8, 16])):
            broken[place] = rng.randrange(256)
        assert torch.equal(decode(bytes(broken), where="noise"), sound)


def test_a_broken_text_does_not_cost_the_orientation() -> None:
    data = bytearray(with_metadata("PNG", turned=6))
    data[data.index(b"hello" * 20)] ^= 1  # the chunk's checksum is wrong now
    with collect_notes() as notes:
        assert decode(bytes(data), where="a.png").shape == (3, WIDTH, HEIGHT)
    assert notes == ["a.png: its metadata are broken (its pixels are used)"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_applied_once_and_the_size_is_known_from_the_header(kind: str, tmp_path: Path) -> None:
    """PIL rotates a TIFF itself and already gives its upright size, so `check` reported a wrong size for such files."""
    for turned in range(1, 9):
        path = tmp_path / f"{turned}.img"
        path.write_bytes(with_metadata(kind, turned))
        image = decode_file(path)
        assert distance(image, pixels(ImageOps.exif_transpose(Image.open(path)))) < 1
        assert size_of(path) == tuple(image.shape[1:])
        exif = Image.Exif()
        exif[0x0112] = turned
        assert distance(image, pixels(ImageOps.exif_transpose(_tagged(exif)))) < 6


def _tagged(exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(picture(), "PNG", exif=exif)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_trailing_garbage_is_ignored(kind: str) -> None:
    data = with_metadata(kind)
    assert torch.equal(decode(data + b"garbage" * 9, where="tail"), decode(data, where="sound"))


def test_messages_of_libjpeg_and_libtiff_get_the_file_name(capfd: pytest.CaptureFixture[str]) -> None:
    """The messages went to standard error without the file's name."""
    data = encoded(picture(), "JPEG")
    with collect_notes() as notes:
        decode(data[:-30] + data[-2:], where="some/odd.jpg")
        lzw = bytearray(encoded(picture(), "TIFF", compression="tiff_lzw"))
        lzw[60:64] = b"\xff\xff\xff\xff"
        with pytest.raises(UnreadableImage, match=r"odd\.tif"):
            decode(bytes(lzw), where="some/odd.tif")
    assert notes == ["some/odd.jpg: Corrupt JPEG data: premature end of data segment (its pixels are used)"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_cut_file_is_unreadable_or_has_lost_nothing_but_metadata(kind: str) -> None:
    """WebP keeps its EXIF behind the pixels."""
    data = with_metadata(kind)
    sound, read = decode(data, where="sound"), 0
    for length in range(0, len(data), 23):
        try:
            assert torch.equal(decode(data[:length], where="cut"), sound)
            read += 1
        except UnreadableImage:
            continue
    assert read < 10


def test_a_pipe_is_refused_by_its_name(tmp_path: Path) -> None:
    """Opening a pipe waits for its writer, and no signal interrupted it."""
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(UnreadableImage, match=r"x\.jpg is a pipe, a device or a socket, not a regular file"):
        decode_file(tmp_path / "x.jpg")
    assert size_of(tmp_path / "x.jpg") == "unreadable image"
    with pytest.raises(FileNotFoundError, match=r"y\.jpg"):
        decode_file(tmp_path / "y.jpg")
    assert size_of(tmp_path / "y.jpg") == "missing image"
