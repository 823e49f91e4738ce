"""Shared fixtures: one torch thread, real sample data if available, a small folder of images in ImageNet's layout."""

from __future__ import annotations

import functools
import os
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tests.forked import interpreter

ROOT = Path(__file__).parent.parent
CLASSES = ("n01", "n02", "n03")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums then run in one order on every machine, and tests that start processes do not fight for cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def closed_pipes_are_errors() -> Iterator[None]:
    """A command that prints tables ends quietly with its pipe. Called by a test, it must not end the others."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests with the marker `cuda` run where there is a GPU."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads what is remembered on this machine, or leaves anything there."""
    os.environ["MAE_TRANSFER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An interpreter that has imported what suites and their tools need, so that its programs start at once."""
    modules = ("torch.distributed.run", "mae_transfer.suite.slurm.job", "mae_transfer.cli")
    tasks = (f"mae_transfer.tasks.{task}" for task in ("classify", "detect", "knn", "pretrain"))
    with interpreter(tmp_path_factory.mktemp("python"), *modules, *tasks) as path:
        yield path


@pytest.fixture
def flex_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention on a CPU has gradients of its plain formula, but torch refuses them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """real_data("tinyimagenet") -> its folder, unpacked once per session; skips the test if the archive is absent."""
    archives = Path(os.environ.get("MAE_TRANSFER_TEST_DATA", ROOT.parent / "shared" / "data"))

    @functools.cache
    def unpack(name: str) -> Path:
        archive = archives / f"{name}.zip"
        if not archive.is_file():
            pytest.skip(f"{archive.name} is not in {archives}; set MAE_TRANSFER_TEST_DATA to the folder that holds it")
        target = tmp_path_factory.mktemp("real_data")
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(target)
        return target / name

    return unpack


@pytest.fixture(scope="session")
def detectron2() -> ModuleType:
    """detectron2.modeling; skips the test where it is absent, as it is after `make install`: it is not on PyPI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        why = "detectron2 is not installed; it is not on PyPI (docs/faq.md, Without detectron2)"
        return pytest.importorskip("detectron2.modeling", reason=why, exc_type=ImportError)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with train/ and val/, 3 classes, 4 JPEGs of various sizes per class: noise on a colour per class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                height, width = (int(side) for side in rng.integers(40, 90, size=2))
                pixels = rng.integers(0, 96, size=(height, width, 3)) + 80 * (np.arange(3) == label)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{number}.JPEG", quality=92)
    return tmp_path / "images"
