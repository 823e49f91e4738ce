"""data/archives.py, data/checks.py, data/dense_shapes.py and tools/prepare_data.py, with a local download server."""

import hashlib
import io
import json
import re
import runpy
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_transfer.core.runs import rasterize
from mae_transfer.data.ade import AdeConfig
from mae_transfer.data.archives import DATA_SETS, Archive
from mae_transfer.data.checks import check_any
from mae_transfer.data.coco import CocoConfig
from mae_transfer.data.dense_shapes import ShapesMapsConfig, ShapesObjectsConfig, write_ade, write_coco
from mae_transfer.download import unpack
from mae_transfer.seeding import fold

TOOL = Path(__file__).parents[2] / "tools" / "prepare_data.py"
SMALL = {"train": 3, "val": 2, "size": 48}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, byte ranges too; counts the bytes that it sent."""

    sent = 0

    def do_GET(self) -> None:
        body = Path(self.translate_path(self.path)).read_bytes()
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:])
        Handler.sent += len(body) - start

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.sent = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """tool("check", "--root", ...) -> exit status and all that was printed."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def pack(folder: Path, archive: Path, *, parts: tuple[str, ...]) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file()):
            packed.write(path, path.relative_to(folder))


def test_a_data_set_is_fetched_continued_unpacked_and_checked(
    served: tuple[Path, str], tmp_path: Path, tool: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    write_coco(tmp_path / "made", **SMALL)
    (tmp_path / "made" / "annotations" / "captions_train2017.json").write_text("{}")
    for name in ("annotations", "train2017", "val2017"):
        pack(tmp_path / "made", folder / f"{name}.zip", parts=(name,))
    digits = hashlib.md5((folder / "train2017.zip").read_bytes()).hexdigest()
    parts = (Archive(f"{address}/annotations.zip", ("annotations/instances_",)), Archive(f"{address}/val2017.zip"))
    ours = DATA_SETS["coco"]._replace(archives=(*parts, Archive(f"{address}/train2017.zip", checksum=f"md5:{digits}")))
    monkeypatch.setitem(DATA_SETS, "coco", ours)
    root = tmp_path / "root"
    root.mkdir()
    (root / "train2017.zip.part").write_bytes((folder / "train2017.zip").read_bytes()[:1000])
    status, said = tool("coco", "--root", root)
    assert status == 0
    assert "CC BY 4.0" in said
    assert f"train2017: no defect\nval2017: no defect\nready: --set data.root={root}" in said
    assert Handler.sent == sum(path.stat().st_size for path in folder.iterdir()) - 1000
    assert not (root / "annotations" / "captions_train2017.json").exists()
    assert CocoConfig(root=str(root)).open().read(2).objects.masks is not None
    sent, torn = Handler.sent, root / "train2017" / "000000000002.jpg"
    torn.write_bytes(torn.read_bytes()[:100])
    assert tool("coco", "--root", root)[0] == 0
    assert Handler.sent == sent, "nothing is downloaded twice"
    assert torn.read_bytes() == (tmp_path / "made" / "train2017" / torn.name).read_bytes()
    torn.unlink()
    status, said = tool("coco", "--root", root, "--check")
    assert status == 1
    assert f"train2017:\n  1 x missing image: {torn.name}\nval2017: no defect" in said
    assert "1 defects" in said


def test_the_archive_of_ade20k_has_its_own_folder(
    served: tuple[Path, str], tmp_path: Path, tool: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    write_ade(tmp_path / "made" / "ADEChallengeData2016", **SMALL)
    pack(tmp_path / "made", folder / "ade.zip", parts=("ADEChallengeData2016",))
    monkeypatch.setitem(DATA_SETS, "ade20k", DATA_SETS["ade20k"]._replace(archives=(Archive(f"{address}/ade.zip"),)))
    status, said = tool("ade20k", "--root", tmp_path / "root")
    assert status == 0
    assert f"data.root={tmp_path / 'root' / 'ADEChallengeData2016'}" in said
    assert "non-commercial" in said


def test_a_damaged_or_hostile_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"torn.zip is damaged .*download it again"):
        unpack(tmp_path / "torn.zip", tmp_path / "out")
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as packed:
        packed.writestr("a.txt", b"x" * 1000)
    content = bytearray(body.getvalue())
    content[100] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped.zip is damaged .*CRC"):
        unpack(tmp_path / "flipped.zip", tmp_path / "out")
    assert not (tmp_path / "out" / "a.txt").exists()
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as packed:
        packed.writestr("../escaped.txt", b"x")
    with pytest.raises(ValueError, match="outside"):
        unpack(tmp_path / "hostile.zip", tmp_path / "out")
    assert not (tmp_path / "escaped.txt").exists()


@pytest.mark.parametrize("layout", ["coco", "ade"])
def test_written_shapes_have_no_defect_and_are_the_same_each_time(
    tmp_path: Path, tool: Callable[..., tuple[int, str]], layout: str
) -> None:
    for name in ("one", "two"):
        words = [word for option, value in SMALL.items() for word in (f"--{option}", value)]
        assert tool("shapes", "--root", tmp_path / name, "--format", layout, *words)[0] == 0
    few = ["--allow-absent"] if layout == "ade" else []  # so few scenes do not show every class
    status, said = tool("check", "--root", tmp_path / "one", *few)
    assert status == 0
    assert said.count("no defect") == 2
    files = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    }
    assert files["one"] == files["two"]
    assert len(files["one"]) == (5 + 2 if layout == "coco" else 10 + 1)


def test_written_sets_equal_the_scenes(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", **SMALL)
    written = CocoConfig(root=str(tmp_path / "coco")).open()
    scenes = ShapesObjectsConfig(size=48, length=3, seed=fold(0, "train2017")).open()
    assert written.classes == scenes.classes
    assert written.image_ids.tolist() == scenes.image_ids.tolist()
    for index in range(3):
        ours, theirs = scenes.read(index), written.read(index)
        for name in ("boxes", "labels", "crowd", "masks"):
            assert np.array_equal(getattr(ours.objects, name), getattr(theirs.objects, name)), name
        assert (ours.image.float() - theirs.image.float()).abs().mean() < 8, "JPEG loses a little"
    write_ade(tmp_path / "ade", **SMALL)
    maps, drawn = (
        AdeConfig(root=str(tmp_path / "ade")).open(),
        ShapesMapsConfig(size=48, length=3, seed=fold(0, "training")).open(),
    )
    assert maps.classes == drawn.classes
    assert all(np.array_equal(maps.read(index).labels, drawn.read(index).labels) for index in range(3))


def test_objects_of_a_scene_are_visible_and_their_boxes_tight() -> None:
    scenes = ShapesObjectsConfig(size=32, length=40, objects=(4, 6)).open()
    for index in range(40):
        objects = scenes.objects(index)
        assert objects.masks is not None
        masks = rasterize(objects.masks, (32, 32))
        assert (masks.sum(dim=(1, 2)) >= 4).all()
        assert len(objects.boxes) == len(objects.labels) == len(objects.crowd) == len(masks)
        for (x0, y0, x1, y1), mask in zip(objects.boxes.long().tolist(), masks, strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
    truth = json.loads(json.dumps(scenes.ground_truth()))
    assert len({one["id"] for one in truth["annotations"]}) == len(truth["annotations"]) > 80


def test_any_json_and_any_class_list_can_be_checked(tmp_path: Path, tool: Callable[..., tuple[int, str]]) -> None:
    write_coco(tmp_path / "coco", **SMALL)
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").rename(tmp_path / "coco" / "mine.json")
    status, said = tool("check", "--root", tmp_path / "coco", "--annotations", "mine.json", "--images", "train2017")
    assert status == 0
    assert said.endswith("\nmine.json: no defect\n")
    write_ade(tmp_path / "ade", **SMALL)
    status, said = tool("check", "--root", tmp_path / "ade", "--split", "validation", "--classes", "a", "b")
    assert status == 1
    assert "2 x value beyond the 2 classes" in said
    options = {"classes": ["void", *map(str, range(11))], "reduce_zero_label": False, "allow_absent": True}
    kept = check_any(tmp_path / "ade", options=options)
    assert not [defect for found in kept.values() for defect in found if not defect.policy]
    assert kept["validation"][0].examples[0] == "'void' (value 0)"
    with pytest.raises(ValueError, match="has neither"):
        check_any(tmp_path, options={})
    with pytest.raises(ValueError, match="'.*nowhere' is not a folder"):
        check_any(tmp_path / "nowhere", options={})


def test_splits_with_other_categories_are_a_defect_as_in_a_run(tmp_path: Path, tool: Callable[..., Any]) -> None:
    write_coco(tmp_path, **SMALL)
    file = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    before = content["categories"][0]["name"]
    content["categories"][0]["name"] = "other"
    file.write_text(json.dumps(content))
    status, said = tool("check", "--root", tmp_path)
    assert status == 1
    assert f"1 x classes other than those of train2017: {', '.join(sorted(['other', before]))}; a run needs" in said
    content["categories"][0]["name"] = before
    content["categories"][0]["id"] = 1 + max(one["id"] for one in content["categories"])
    for one in content["annotations"]:
        one["category_id"] = content["categories"][-1]["id"]
    file.write_text(json.dumps(content))
    assert "classes other than those of train2017: the order differs" in tool("check", "--root", tmp_path)[1]


def test_defects_with_a_policy_are_shown_and_do_not_fail_the_check(
    tmp_path: Path, tool: Callable[..., tuple[int, str]]
) -> None:
    write_coco(tmp_path, **SMALL)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0].pop("segmentation")
    file.write_text(json.dumps(content))
    status, said = tool("check", "--root", tmp_path, "--split", "val2017")
    assert status == 0
    assert "val2017: no defect that stops a run\n  1 x no outline (left out): object 1\n" in said
    for one in content["annotations"]:
        one.pop("segmentation", None)
    file.write_text(json.dumps(content))
    status, said = tool("check", "--root", tmp_path, "--split", "val2017")
    assert status == 1
    assert "no object has an outline: to use boxes only, set masks=False and heads.masks=False (check: --boxes)" in said
    assert tool("check", "--root", tmp_path, "--split", "val2017", "--boxes") == (0, "val2017: no defect\n")


def test_every_public_archive_is_named_with_its_terms() -> None:
    for name, data_set in DATA_SETS.items():
        assert "Terms: https://" in data_set.terms, name
        assert all(archive.url.endswith(".zip") for archive in data_set.archives)
    for name in ("coco", "ade20k"):
        (defect,) = DATA_SETS[name].check("nowhere", DATA_SETS[name].splits[0])
        assert defect.kind == "unusable data set"
        assert "nowhere" in str(defect)
