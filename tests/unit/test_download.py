"""checkpoints/released.py and download.py, against a server on this machine."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_transfer import checkpoints
from mae_transfer.checkpoints.released import RELEASED, ReleasedFile, download, find_released
from mae_transfer.checkpoints.tokenizers import load_tokenizer
from mae_transfer.disk import cache_folder
from mae_transfer.models.dvae import DVAEConfig, encoder
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.suite.store.work import Work

ROOT = Path(__file__).parents[2]

BODY = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves BODY; remembers what was asked; breaks off after `cut` bytes, or ignores ranges, when told to."""

    ranges: list[str | None]
    cut: int | None = None
    resumes: bool = True
    busy: bool = False
    body: bytes = BODY


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if "absent" in self.path:
            self.send_error(404)
            return
        if self.server.busy:
            self.send_error(503)
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.server.resumes else 0
        if start >= len(self.server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.server.body) - start))
        self.end_headers()
        self.wfile.write(self.server.body[start : self.server.cut])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.ranges = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def entry(server: Server, *, name: str = "w.pth", checksum: str | None = None) -> ReleasedFile:
    return ReleasedFile("mae", f"http://127.0.0.1:{server.server_port}/some/{name}?download=1", "MIT", checksum)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_checked(server: Server, tmp_path: Path) -> None:
    known = entry(server, checksum=f"sha256:{hashlib.sha256(BODY).hexdigest()[:8]}")
    assert download(known, folder=tmp_path).read_bytes() == BODY
    assert download(known, folder=tmp_path) == tmp_path / "w.pth"
    assert server.ranges == [None]
    assert files(tmp_path) == ["w.pth"]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_goes_on_where_it_stopped_or_begins_anew(
    server: Server, tmp_path: Path, resumes: bool
) -> None:
    server.cut = 300_000
    with pytest.raises(ValueError, match=r"could not be downloaded .*300000 bytes are kept, run the command again"):
        download(entry(server), folder=tmp_path)
    assert files(tmp_path) == ["w.pth.part"]
    server.cut, server.resumes = None, resumes
    assert download(entry(server), folder=tmp_path).read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-"]


def test_a_part_that_is_already_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(BODY)
    assert (
        download(entry(server, checksum=f"md5:{hashlib.md5(BODY).hexdigest()[:6]}"), folder=tmp_path).read_bytes()
        == BODY
    )


def test_a_part_outlives_a_busy_server_and_goes_if_it_belongs_to_another_file(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "w.pth.part"
    part.write_bytes(BODY[:1000])
    server.busy = True
    with pytest.raises(ValueError, match=r"503.*1000 bytes are kept"):
        download(entry(server), folder=tmp_path)
    assert part.read_bytes() == BODY[:1000]
    server.busy = False
    part.write_bytes(BODY + b"more")
    with pytest.raises(ValueError, match="416"):
        download(entry(server), folder=tmp_path)
    assert files(tmp_path) == []


def test_a_wrong_checksum_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="md5 begins .*published is 000000"):
        download(entry(server, checksum="md5:000000"), folder=tmp_path)
    assert files(tmp_path) == []


def test_an_address_that_does_not_answer_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.pth.* could not be downloaded .*404"):
        download(entry(server, name="absent.pth"), folder=tmp_path)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAE_TRANSFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mae_transfer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mae_transfer"
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_released_weights_load_by_name_and_say_their_licence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vit = ViT(ViTConfig(size=None, dim=32, depth=1, heads=2, image_size=32))
    torch.save({"model": vit.state_dict()}, tmp_path / "x.pth")
    server.body = (tmp_path / "x.pth").read_bytes()
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setitem(RELEASED, "tiny", entry(server)._replace(licence=RELEASED["mae_vit_base"].licence))
    loaded = checkpoints.load("released:tiny", changes={"heads": 2})
    assert torch.equal(loaded.backbone.pos_embed, vit.pos_embed)
    assert loaded.sha256 == hashlib.sha256(server.body).hexdigest()
    assert "CC-BY-NC 4.0: not for commercial use" in caplog.text


def test_a_released_tokenizer_is_read_from_the_cache_and_is_no_backbone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = DVAEConfig(codes=16, groups=4, blocks=1, width=8, decoder_input=8)
    torch.save(encoder(cfg).state_dict(), tmp_path / "x.pth")
    server.body = (tmp_path / "x.pth").read_bytes()
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(RELEASED, "small_dalle", entry(server, name="encoder.pth")._replace(layout="dalle"))
    assert load_tokenizer("released:small_dalle").codes == 16
    assert load_tokenizer("released:small_dalle").codes == 16
    assert len(server.ranges) == 1
    with pytest.raises(ValueError, match=r"released:small_dalle is a tokenizer, not a backbone"):
        checkpoints.load("released:small_dalle")


def test_a_suite_downloads_its_weights_before_it_starts_or_submits_a_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAE_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(RELEASED, "tiny", entry(server))
    (tmp_path / "suite.py").write_text(
        'title = "t"\ntables = ("3",)\nrows = {"a": dict(backbone="released:tiny")}\n'
        f'transfer = {{"ft": dict(tool="cls_train", config="{ROOT}/configs/classify/mini.py")}}\n'
    )
    work = Work(open_plan(tmp_path / "suite.py")[1], tmp_path / "d", suite="t")
    said: list[str] = []
    work.prefetch(said.append)
    assert said == ["weights: released:tiny"]
    assert (tmp_path / "cache" / "w.pth").read_bytes() == BODY
    absent = entry(server, name="absent.pth")
    with pytest.raises(ValueError, match="absent.pth.*; the README has it: pass esvit:PATH"):
        download(absent._replace(otherwise="; the README has it: pass esvit:PATH"))
    monkeypatch.setitem(RELEASED, "tiny", absent)
    with pytest.raises(ValueError, match=r"nothing was started, released:tiny is missing \(for a/ft/seed0\).*404"):
        work.prefetch(said.append)


def test_every_entry_names_a_layout_and_a_checksum_as_published() -> None:
    for name, released in RELEASED.items():
        assert released.layout in (*checkpoints.LAYOUTS, "dalle"), name
        assert released.url.startswith("https://"), name
        assert released.checksum is None or re.fullmatch(r"(md5|sha256):[0-9a-f]{6,64}", released.checksum), name
    assert len({released.url for released in RELEASED.values()}) == len(RELEASED)
    with pytest.raises(ValueError, match="did you mean mae_vit_base"):
        find_released("mae_vit_bse")
