"""Images that are decoded where they are cropped: the same pixels, and every odd file is decoded whole."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.core.masks import Random
from mae_transfer.data import (
    DataConfig,
    Folder,
    FolderConfig,
    LabelledDataConfig,
    Masking,
    Order,
    TrainKeys,
    Unreadable,
    UnreadableImage,
    batches,
    loader,
    open_labelled,
    regions,
    training_crops,
)
from mae_transfer.data.decode import Undecoded, decode, decode_late
from mae_transfer.data.regions import Region, decode_regions, in_advance, in_turn
from mae_transfer.data.reports import report
from mae_transfer.data.sources import Subset, decoded_late
from mae_transfer.interfaces import ViewSpec

MODULE = sys.modules["mae_transfer.data.decode"]  # the package has a function of this name
Decoder = Callable[..., Any]


def photo(height: int = 61, width: int = 83, seed: int = 0) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (4 + seed)), np.sin(y / 5), np.sin((x + y) / 7)]
    return Image.fromarray((np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8))


def jpeg(image: Image.Image | None = None, turn: int = 1, **options: Any) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    if turn > 1:  # a file without EXIF is opened in another way
        exif[0x0112] = turn
        options["exif"] = exif
    (image or photo()).save(file, "JPEG", **options)
    return file.getvalue()


def boxes_of_pil(data: bytes, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Decode a box as nvImageCodec does: of the stored image, without its orientation."""
    boxes_of_pil.calls += 1  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").crop((left, top, left + width, top + height)))


@pytest.fixture(params=["PIL", "nvImageCodec"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of boxes, or one that any machine has."""
    if request.param == "PIL":
        boxes_of_pil.calls = 0  # type: ignore[attr-defined]
        monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
    elif MODULE._region_decoder(0) is None:
        pytest.skip("nvImageCodec is not installed")


FILES = {
    **{f"orientation {turn}": jpeg(turn=turn) for turn in range(1, 9)},
    "grey": jpeg(photo().convert("L")),
    "progressive": jpeg(progressive=True),
    "colours of every pixel": jpeg(subsampling=0),
    "colours of every second column": jpeg(subsampling=1),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("decoder")
def test_every_box_is_that_of_the_whole_image(name: str) -> None:
    whole, late = (one(FILES[name], where="x") for one in (decode, decode_late))
    assert isinstance(late, Undecoded)
    assert late.shape == whole.shape
    assert late.is_meta
    height, width = whole.shape[1:]
    rng = np.random.default_rng(0)
    for _ in range(20):
        h, w = (int(rng.integers(1, side + 1)) for side in (height, width))
        top, left = (int(rng.integers(0, side - length + 1)) for side, length in ((height, h), (width, w)))
        crop = late.crop(top, left, h, w)
        assert torch.equal(crop, whole[:, top : top + h, left : left + w])


def test_odd_files_are_decoded_whole_and_named_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
    png = io.BytesIO()
    photo().save(png, "PNG")
    for data in (png.getvalue(), jpeg(photo().convert("CMYK")), jpeg() + b"trailing"):
        late = decode_late(data, where="x")
        assert not isinstance(late, Undecoded)
        assert torch.equal(late, decode(data, where="x"))
    several = jpeg()[:2] + b"\xff\xe2\0\x06MPF\0" + jpeg()[2:]
    assert MODULE._plain_header(jpeg()) == ((61, 83), 1)
    assert MODULE._plain_header(jpeg(progressive=True, icc_profile=b"?" * 70_000)) == ((61, 83), 1)
    assert MODULE._plain_header(several) is None
    assert MODULE._plain_header(jpeg(turn=6)) is None
    for data in (jpeg()[:-200], b"", b"\xff\xd8\xff garbage \xff\xd9"):
        with pytest.raises(UnreadableImage, match="^x: its"):
            decode_late(data, where="x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="MAX_IMAGE_PIXELS"):
        decode_late(jpeg(), where="x")


def test_metadata_after_the_frame_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """EXIF, several pictures in one file, a second frame, and markers without a length, before the scan."""
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
    plain, turned = jpeg(), jpeg(turn=6)
    exif = turned[turned.index(b"\xff\xe1") :]
    exif = exif[: 2 + int.from_bytes(exif[2:4])]
    scan, frame = plain.index(b"\xff\xda"), plain.index(b"\xff\xc0")
    second = plain[frame : frame + 2 + int.from_bytes(plain[frame + 2 : frame + 4])]
    for at in (frame + len(second), scan):
        data = plain[:at] + exif + plain[at:]
        whole, late = (one(data, where="x") for one in (decode, decode_late))
        assert late.shape == whole.shape == (3, 83, 61)
        assert torch.equal(late.crop(3, 4, 20, 30), whole[:, 3:23, 4:34])  # type: ignore[attr-defined]
    for unusual in (exif, b"\xff\xe2\0\x06MPF\0", second, b"\xff\xd0", b"\xff"):
        assert MODULE._plain_header(plain[:scan] + unusual + plain[scan:]) is None


@pytest.mark.parametrize("failure", [None, RuntimeError, TypeError, "warns"])
def test_a_box_that_fails_is_cut_from_the_whole_image(monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    def failing(*box: Any) -> np.ndarray | None:
        if failure in (RuntimeError, TypeError):
            raise failure("decoder")
        if failure == "warns":
            print("Corrupt JPEG data", file=sys.__stderr__, flush=True)
            return boxes_of_pil(*box)[::-1].copy()
        return None

    boxes_of_pil.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: failing)
    late = decode_late(jpeg(), where="x")
    assert isinstance(late, Undecoded)
    assert torch.equal(late.crop(3, 4, 20, 30), decode(jpeg(), where="x")[:, 3:23, 4:34])


def test_without_the_decoder_images_are_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: None)
    assert torch.equal(decode_late(jpeg(), where="x"), decode(jpeg(), where="x"))


def test_a_library_of_another_version_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", type(sys)("nvidia.nvimgcodec"))
    assert MODULE._region_decoder.__wrapped__(0) is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(12):
        folder = tmp_path / "set" / "train" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(jpeg(photo(60 + index, 80, seed=index), turn=1 + index % 8))
    photo().save(tmp_path / "set/train/a/12.png")
    return tmp_path / "set"


AUGMENTATIONS: tuple[dict[str, Any], ...] = (
    {"name": "random_crop"},
    {"name": "random_crop", "jitter": 0.4},
    {"name": "byol_crop"},
    {"name": "fixed_crop"},
    {"name": "rand_augment"},
    {"name": "none"},
)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda one: "-".join(map(str, one.values())))
def test_crops_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch, augmentation: dict[str, Any]) -> None:
    """Also through subsets and with several crops of an image, which is then decoded whole."""
    boxes_of_pil.calls = 0  # type: ignore[attr-defined]
    used = {}
    for repeats in (1, 2):
        data = {"root": str(root), "size": 24, "augmentation": augmentation, "crops_per_image": repeats}
        cfg = LabelledDataConfig.model_validate({**data, "val": {"name": "folder", "split": "train"}})
        train = open_labelled(cfg)[0].train
        found = []
        for decoder in (None, boxes_of_pil):
            monkeypatch.setattr(MODULE, "_region_decoder", lambda _, decoder=decoder: decoder)
            crops = training_crops(cfg, train, seed=1)
            order = Order(images=len(train), batch=12, seed=1, crops_per_image=repeats)
            feed = batches(crops, TrainKeys(order=order))
            found.append(next(feed).image)
            feed.close()
        assert torch.equal(*found)
        used[repeats] = boxes_of_pil.calls  # type: ignore[attr-defined]
    assert used[1] >= 11 if augmentation["name"] != "none" else used[1] == 0
    assert used[2] == used[1]


def test_only_training_crops_are_decoded_late(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
    folder = FolderConfig(root=str(root), split="train").open()
    assert not isinstance(folder.read(0).image, Undecoded)
    late = decoded_late(folder)
    assert isinstance(late, Folder)
    assert isinstance(late.read(0).image, Undecoded)
    assert not isinstance(folder.read(0).image, Undecoded)


def test_an_image_that_fails_when_it_is_cropped_is_replaced_or_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(data: bytes, *, where: str) -> torch.Tensor:
        if where == folder.where(3):
            raise UnreadableImage(f"{where}: broken below its header")
        return decode(data, where=where)

    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: lambda *_: None)
    monkeypatch.setattr(MODULE, "decode", failing)
    cfg = DataConfig.model_validate({"root": str(root), "size": 24})
    folder = FolderConfig(root=str(root), split="train").open()
    keys = TrainKeys(order=Order(images=len(folder), batch=len(folder), seed=1))
    policy = Unreadable(limit=1)
    feed = batches(training_crops(cfg, folder, seed=1), keys, unreadable=policy)
    assert 3 not in next(feed).index.tolist()
    feed.close()
    assert list(policy.files) == [3]
    with pytest.raises(UnreadableImage, match=r"broken below its header \(data\.on_error='skip'"):
        next(batches(training_crops(cfg, folder, seed=1), keys))


def regions_of_pil(regions: list[Region]) -> list[torch.Tensor | None]:
    found = (torch.from_numpy(boxes_of_pil(region.file, *region.box)).permute(2, 0, 1) for region in regions)
    return list(found)


@pytest.fixture(params=["PIL", "nvImageCodec"])
def device_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's decoder of the crops that workers leave, or one that any machine has."""
    if request.param == "PIL":
        boxes_of_pil.calls = 0  # type: ignore[attr-defined]
        monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
        monkeypatch.setattr(regions, "_decoder", lambda *_: regions_of_pil)
    elif MODULE._region_decoder(0) is None:
        pytest.skip("nvImageCodec is not installed")


CPU = torch.device("cpu")
LEFT: list[dict[str, Any]] = [one for one in AUGMENTATIONS if one["name"] != "none" and not one.get("jitter")]


@pytest.mark.usefixtures("device_decoder")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augmentation", LEFT, ids=lambda one: one["name"])
def test_crops_that_are_decoded_in_the_main_process_are_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, augmentation: dict[str, Any], workers: int
) -> None:
    """With masks, and RandAugment on the device; files that are no plain JPEG come decoded from the workers.

    Without workers, a thread decodes in advance, as for a GPU.
    """
    if not workers:
        monkeypatch.setattr(loader, "in_turn", in_advance)
    cfg = DataConfig.model_validate({"root": str(root), "size": (24, 16), "augmentation": augmentation})
    source = FolderConfig(root=str(root), split="train").open()
    where: Any = "device" if augmentation["name"] == "rand_augment" else "worker"
    keys = TrainKeys(order=Order(images=len(source), batch=12, seed=1))
    masking = Masking(Random(), (6, 4))
    found = []
    for device in (None, CPU):
        crops = training_crops(cfg, source, seed=1, masking=masking, augment_on=where, decode_on=device)
        feed = batches(crops, keys, workers=workers)
        found += [next(feed), next(feed)]
        feed.close()
    for here, there in zip(found[:2], found[2:], strict=True):
        assert torch.equal(here.image, there.image)
        for name in ("label", "index"):
            assert torch.equal(getattr(here, name), getattr(there, name))
        assert torch.equal(here.mask.ids_keep, there.mask.ids_keep)
        assert (here.operations is None) == (there.operations is None) == (where == "worker")
    left = training_crops(cfg, source, seed=1, augment_on=where, decode_on=CPU)[next(iter(keys))]
    assert 0 < len(left.left) < 12
    assert len(left.left) + len(left.batch.image) == 12


def codec_without_cpu() -> Any:
    """nvImageCodec 0.8 as a worker sees it: no name of a device without GPU."""
    kinds = SimpleNamespace(CPU_ONLY=0, GPU_ONLY=1, HW_GPU_ONLY=2, HYBRID_CPU_GPU=3)
    names = ("Backend", "CodeStream", "DecodeParams", "Decoder", "Region")
    return SimpleNamespace(__version__="0.8.0", BackendKind=kinds, **{name: MagicMock() for name in names})


@pytest.mark.parametrize("codec", [codec_without_cpu(), None], ids=["0.8", "none"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_leaves_crops_to_the_device_whatever_it_can_decode_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch, codec: Any, fails: bool
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", codec)
    monkeypatch.setattr(MODULE, "_region_decoder", MODULE._region_decoder.__wrapped__)
    monkeypatch.setattr(regions, "_decoder", lambda *_: (lambda left: [None] * len(left)) if fails else regions_of_pil)
    monkeypatch.setattr("mae_transfer.data.config.check_decoder", lambda _: None)
    assert MODULE._region_decoder(0) is None
    boxes_of_pil.calls = 0  # type: ignore[attr-defined]
    cfg = DataConfig.model_validate({"root": str(root), "size": 24})
    source = Subset(FolderConfig(root=str(root), split="train").open(), np.arange(13))
    keys = TrainKeys(order=Order(images=13, batch=13, seed=1))
    found = []
    for device in (None, CPU):
        crops = training_crops(cfg, source, seed=1, decode_on=device)
        with closing(batches(crops, keys)) as feed:
            found.append(next(feed))
    assert torch.equal(found[0].image, found[1].image)
    output = crops[next(iter(keys))]
    assert len(output.left) == 12  # type: ignore[arg-type]
    assert len(output.batch.image) == 1  # the PNG


def test_a_batch_of_which_nothing_is_left_to_the_device_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(4):
        photo(seed=index).save(tmp_path / f"{index}.png")
    monkeypatch.setattr("mae_transfer.data.config.check_decoder", lambda _: None)
    report.cache_clear()
    source = FolderConfig(root=str(tmp_path), labelled=False).open()
    keys = TrainKeys(order=Order(images=4, batch=2, seed=1))
    with closing(batches(training_crops(DataConfig(size=24), source, seed=1, decode_on=CPU), keys)) as feed:
        for _ in range(3):
            next(feed)
    [message] = caplog.messages
    assert message.startswith("run.decode_on = 'device' had no effect on a batch, because none of its")


@pytest.mark.parametrize("run", [in_turn, in_advance])
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_is_broken_where_the_main_process_decodes_it_is_named_or_replaced_as_in_a_worker(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, skip: bool, run: Any
) -> None:
    def failing(data: bytes, *, where: str) -> torch.Tensor:
        if where == folder.where(3):
            raise UnreadableImage(f"{where}: broken below its header")
        return decode(data, where=where)

    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: lambda *_: None)  # workers decode whole images
    monkeypatch.setattr(regions, "_decoder", lambda *_: lambda regions: [None] * len(regions))
    monkeypatch.setattr("mae_transfer.data.config.check_decoder", lambda _: None)
    monkeypatch.setattr(MODULE, "decode", failing)
    monkeypatch.setattr(loader, "in_turn", run)
    cfg = DataConfig.model_validate({"root": str(root), "size": 24})
    folder = FolderConfig(root=str(root), split="train").open()
    keys = TrainKeys(order=Order(images=len(folder), batch=len(folder), seed=1))
    found = []
    for device in (None, CPU):
        policy = Unreadable(limit=int(skip))
        feed = batches(training_crops(cfg, folder, seed=1, decode_on=device), keys, unreadable=policy)
        if not skip:
            with pytest.raises(UnreadableImage, match=r"broken below its header \(data\.on_error='skip'"):
                next(feed)
            continue
        found.append(next(feed))
        assert list(policy.files) == [3]
        feed.close()
    if skip:
        assert 3 not in found[1].index.tolist()
        for name in ("image", "label", "index"):
            assert torch.equal(getattr(found[0], name), getattr(found[1], name))
        [message] = [message for message in caplog.messages if "on the device" in message]
        assert re.fullmatch(r"\d+ crops were not decoded on the device: nvImageCodec cannot decode them", message)


def test_a_thread_begins_the_next_item_while_the_caller_works_and_its_errors_come_when_they_are_due() -> None:
    begun = [threading.Event() for _ in range(4)]

    def begin(item: int) -> int:
        begun[item].set()
        if item == 2:
            raise OSError("item 2")
        return threading.get_ident()

    found = in_advance(range(4), begin, lambda item, thread: (item, thread))
    for item in (0, 1):
        assert next(found) != (item, threading.get_ident())
        assert begun[item + 1].wait(10)
    with pytest.raises(OSError, match="item 2"):
        next(found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_images_that_the_device_cannot_reduce_are_drawn_again_and_reported_whenever_their_number_doubles(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CUDA refuses to reduce an image by a very large factor. Old versions of torch pin a tuple as a list."""
    boxes_of_pil.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
    monkeypatch.setattr(regions, "_decoder", lambda *_: regions_of_pil)
    cfg, source = DataConfig(size=24), FolderConfig(root=str(root), split="train").open()
    keys = TrainKeys(order=Order(images=len(source), batch=4, seed=1))
    crops = training_crops(cfg, source, seed=1, decode_on=CPU)
    expected = batches(training_crops(cfg, source, seed=1), keys)

    def refuses(*_: Any) -> Any:
        raise RuntimeError("Too much shared memory required: 99\nand a trace")

    monkeypatch.setattr(loader, "finish_region", refuses)
    outputs = (crops[wanted]._replace(notes=["odd"]) for wanted in keys)  # type: ignore[arg-type]
    policy, number = Unreadable(), 0
    with closing(crops.finished(outputs, keys)) as found:
        for _ in range(6):
            output = next(found)
            policy.note(output)
            number += output.undecoded
            assert "odd" in output.notes
            assert torch.equal(output.batch.image, next(expected).image)
    messages = [message for message in caplog.messages if message.endswith("Too much shared memory required: 99")]
    assert policy.undecoded == number > len(messages) > 1


def test_the_stream_of_a_step_waits_for_the_stream_of_the_decoder_and_keeps_its_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With streams that are none, because there is no GPU."""
    boxes_of_pil.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(MODULE, "_region_decoder", lambda _: boxes_of_pil)
    monkeypatch.setattr(regions, "_decoder", lambda *_: regions_of_pil)
    decoder, step, kept = MagicMock(), MagicMock(), []
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: step)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda images, stream: kept.append((images, stream)))
    cfg, source = DataConfig(size=24), FolderConfig(root=str(root), split="train").open()
    crops = training_crops(cfg, source, seed=1, decode_on=CPU)
    keys = next(iter(TrainKeys(order=Order(images=len(source), batch=12, seed=1))))
    found = crops._decode(crops[keys], keys, decoder)
    step.wait_event.assert_not_called()
    image = crops._complete(crops[keys], keys, found).batch.image
    step.wait_event.assert_called_once_with(decoder.record_event.return_value)
    [(images, stream)] = kept
    assert image is images
    assert stream is step


def test_a_decoder_that_warns_or_fails_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(jpeg(), (0, 0, 8, 8), 1, False, ViewSpec(8, "bicubic"))

    def warns(found: list[Region]) -> list[torch.Tensor | None]:
        os.write(2, b"Corrupt JPEG data\n")
        return regions_of_pil(found)

    def fails(found: list[Region]) -> list[torch.Tensor | None]:
        raise MemoryError

    boxes_of_pil.calls = 0  # type: ignore[attr-defined]
    for decoder, count, reason in (
        (regions_of_pil, 0, ""), (warns, 2, "Corrupt JPEG data"), (fails, 2, "MemoryError: "),
        (lambda _: [torch.zeros(3, 8, 8), None], 1, "nvImageCodec cannot decode them"),
    ):  # fmt: skip
        monkeypatch.setattr(regions, "_decoder", lambda *_, decoder=decoder: decoder)
        found = decode_regions([region, region], CPU)
        assert (found.boxes.count(None), found.reason) == (count, reason)


def test_the_standard_error_of_a_process_with_a_gpu_is_not_redirected(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It belongs to other threads, too; and the GPU's decoder fails image by image."""
    monkeypatch.setattr(regions, "_decoder", lambda *_: lambda _: [os.write(2, b"a log line\n"), None])
    found = decode_regions([], torch.device("cuda"))
    assert found == ([11, None], "nvImageCodec cannot decode them")
    assert capfd.readouterr().err == "a log line\n"


@pytest.mark.parametrize(("version", "refused"), [("0.9.0", True), ("0.8.0", False)])
def test_the_version_that_crashes_on_gpus_is_refused_there_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    codec = MagicMock(__version__=version)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", codec)
    regions._decoder.cache_clear()
    for device in (torch.device("cuda", 0), CPU):
        if refused and device.type == "cuda":
            with pytest.raises(ValueError, match=r"nvImageCodec 0\.9\.0 crashes .*issues/55\): pip install '.*<0\.9'"):
                regions._decoder(0, device)
        else:
            assert regions._decoder(0, device)
    regions._decoder.cache_clear()


def test_a_missing_decoder_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    regions._decoder.cache_clear()
    cfg, folder = DataConfig(size=24), FolderConfig(root=str(root), split="train").open()
    with pytest.raises(ValueError, match=r"decode_on = 'device' needs nvImageCodec: pip install 'nvidia-nvimgcodec"):
        training_crops(cfg, folder, seed=1, decode_on=CPU)
    with pytest.raises(ValueError, match="one view, but the target needs more"):
        training_crops(cfg, folder, [ViewSpec(12, "lanczos")], seed=1, decode_on=CPU)
