"""graph/plan.py and store/work.py: the graph of runs, errors in configs before the first run, changes of runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae_transfer.ablations import slug
from mae_transfer.config import read
from mae_transfer.suite.graph.plan import open_plan, replaced, select
from mae_transfer.suite.store.records import write_note
from mae_transfer.suite.store.work import Work
from mae_transfer.tasks.entries import CLASSIFY, SEGMENT

ROOT = Path(__file__).parents[2]
SUITE = """
title = "t"
tables = ("1d",)
seeds = (0, 1)
prepare = {"tokens": dict(kind="dvae", config="CONFIGS/mini/tokenizer.py")}
rows = {
    "pixel": dict(config="CONFIGS/mini/pretrain.py", hours=2.0),
    "token": dict(config="CONFIGS/mini/pretrain.py", set={"target": {"name": "token", "tokenizer": "@tokens"}}),
    "released": dict(backbone="mae:PATH"),
}
transfer = {
    "finetune": dict(tool="cls_train", config="CONFIGS/classify/mini.py"),
    "knn": dict(tool="cls_train", config="CONFIGS/classify/mini_knn.py", rows=("pixel",), seeds=(0,)),
}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Path]:
    """suite(old, new, ...) -> the file with each old text replaced by the next one."""

    def write(*changes: str) -> Path:
        text = SUITE
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "suite.py"
        file.write_text(text.replace("CONFIGS", str(ROOT / "configs")))
        return file

    return write


def test_a_suite_is_a_graph_of_runs_in_an_order_in_which_they_can_run(suite: Callable[..., Path]) -> None:
    _, plan = open_plan(suite())
    needs = {name: node.needs for name, node in plan.items()}
    assert needs == {
        "tokens/prepare": (), "pixel/pretrain/seed0": (), "token/pretrain/seed0": ("tokens/prepare",),
        "pixel/finetune/seed0": ("pixel/pretrain/seed0",), "pixel/finetune/seed1": ("pixel/pretrain/seed0",),
        "token/finetune/seed0": ("token/pretrain/seed0",), "token/finetune/seed1": ("token/pretrain/seed0",),
        "released/finetune/seed0": (), "released/finetune/seed1": (), "pixel/knn/seed0": ("pixel/pretrain/seed0",),
    }  # fmt: skip
    order = list(plan)
    assert all(order.index(need) < order.index(name) for name in plan for need in needs[name])


@pytest.mark.parametrize("kind", ["cls_train", "seg_train"])
def test_a_suite_runs_every_task_that_starts_from_a_backbone(kind: str, suite: Callable[..., Path]) -> None:
    folder, tasks = {"cls_train": ("classify", CLASSIFY), "seg_train": ("segment", SEGMENT)}[kind]
    configs = {read(path).get("task", folder): path for path in (ROOT / "configs" / folder).glob("*.py")}
    wanted = [name for name, task in tasks.items() if task.run]
    lines = [f'"a {name}": dict(tool="{kind}", config="{configs[name]}", rows=("pixel",)),' for name in wanted]
    _, plan = open_plan(suite("transfer = {\n", "\n".join(["transfer = {", *lines, ""])))
    for name in wanted:
        cfg: Any = plan[f"pixel/{slug('a ' + name)}/seed0"]
        assert cfg.load(cfg.changes).task == name


def test_each_seed_may_have_its_own_pretraining(suite: Callable[..., Path]) -> None:
    _, plan = open_plan(suite("seeds = (0, 1)", 'seeds = (0, 1)\npretrain_seeds = "each"'))
    assert plan["token/finetune/seed1"].needs == ("token/pretrain/seed1",)
    assert plan["token/pretrain/seed1"].needs == ("tokens/prepare",)


def test_the_rows_of_an_ablation_are_rows(suite: Callable[..., Path]) -> None:
    grid = 'grid = dict(file="CONFIGS/ablations/table1a.py", scale="mini")\ntransfer = {'
    _, plan = open_plan(suite("transfer = {", grid))
    assert plan["12_blocks/pretrain/seed0"].changes["model.decoder.depth"] == 12
    assert "12_blocks/finetune/seed1" in plan


def test_references_are_found_however_deep_they_lie() -> None:
    assert replaced({"a": [{"b": ("@x", "y")}, "@z"], "c": 1}, lambda name: name.upper()) == {
        "a": [{"b": ("@X", "y")}, "@Z"],
        "c": 1,
    }


def test_a_sweep_is_a_run_per_point_before_the_runs_that_report(suite: Callable[..., Path]) -> None:
    grid = 'grid={"optim.lr": (1e-3, 1e-4), "optim.weight_decay": (0.0, 0.1)}'
    sweep = f'sweep=dict({grid}, set={{"data.holdout_fraction": 0.1}}),'
    _, plan = open_plan(suite('config="CONFIGS/classify/mini.py")', f'config="CONFIGS/classify/mini.py", {sweep})'))
    node = plan["pixel/finetune/seed1"]
    assert [dict(plan[point].point) for point in node.points] == [
        {"optim.lr": lr, "optim.weight_decay": wd} for lr in (1e-3, 1e-4) for wd in (0.0, 0.1)
    ]  # fmt: skip
    point = plan[node.points[3]]
    assert (point.role, point.seed, point.changes["optim.lr"], point.changes["data.holdout_fraction"]) == (
        "point",
        0,
        1e-4,
        0.1,
    )
    assert "optim.lr" not in node.changes


@pytest.mark.parametrize(("changes", "text"), [
    (('"@tokens"', '"@token_s"'), "names no preparation and no pretrained row; did you mean 'tokens'"),
    (('"@tokens"', '"@released"'), "names no preparation and no pretrained row"),
    (('rows=("pixel",)', 'rows=("pixels",)'), "the suite has no row 'pixels'; did you mean 'pixel'"),
    (('"token": dict(config', '"Pixel": dict(config'),
        "two runs are named 'pixel/pretrain/seed0' (rows 'pixel' and 'Pixel')"),
    (('"released": dict(backbone="mae:PATH")', '"tokens": dict(backbone="mae:PATH")'),
        "'tokens' is both a preparation and a row"),
    (('"@tokens"', '"@token"'),
        "in a cycle, remove one '@' reference: token/pretrain/seed0 -> token/pretrain/seed0"),
    (("mini/pretrain.py\", hours", "mini/absent.py\", hours"), "absent.py' does not exist"),
    (('hours=2.0', 'set={"epoch": 3}'), "run 'pixel/pretrain/seed0' of"),
    (('hours=2.0', 'data="imagenet"'), "data = 'imagenet' is not in `roots`"),
    (('hours=2.0', 'backbone="mae:x"'), "a row has only one of them"),
    (('tables = ("1d",)', 'tables = ("1z",)'), "tables has unknown names ['1z']"),
    (("seeds = (0, 1)", "seeds = (0, 0)"), "name each seed once"),
    (('title = "t"', 'titel = "t"'), "did you mean 'title'"),
    (('config="CONFIGS/classify/mini.py")', 'config="CONFIGS/mini/tokenizer.py")'),
        "run 'pixel/finetune/seed0'|run 'released/finetune/seed0'"),
    (('config="CONFIGS/classify/mini.py")',
      'config="CONFIGS/classify/mini.py", sweep=dict(grid={"a": (1,)}, split="val"))'), "selects on the reported"),
    (('"CONFIGS/classify/mini.py")',
      '"CONFIGS/classify/mini.py", sweep=dict(grid={"a": (1,)}, split="val", set={"data.val.first": 9}))'),
        "selects on the reported"),
    (('config="CONFIGS/classify/mini.py")', 'config="CONFIGS/classify/mini.py", sweep=dict(grid={"optim.lr": (1,)}))'),
        "no images are held out: add"),
    (('"token": dict(config', '"///": dict(config'), "'///' cannot name a folder"),
    (('rows=("pixel",)', "rows=()"), "at least 1 item"),
    (("seeds=(0,)", "seeds=()"), "at least 1 item"),
    (("hours=2.0", "hour=2.0"), "unknown key 'rows.pixel.hour'; did you mean 'hours'"),
    (("hours=2.0", 'fresh_in={"finetun": {}}'), "unknown transfer 'finetun'; did you mean 'finetune'"),
    (('"token": dict(config', '"pixel": dict(config'), "line 6: key 'pixel' occurs twice in one dict"),
])  # fmt: skip
def test_a_mistake_is_one_clear_error(suite: Callable[..., Path], changes: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError) as error:
        open_plan(suite(*changes))
    assert any(part in str(error.value) for part in text.split("|"))


def test_what_is_not_there_is_named_before_anything_runs(suite: Callable[..., Path], tmp_path: Path) -> None:
    def absent(*changes: str) -> list[str]:
        return Work(open_plan(suite(*changes))[1], tmp_path / "d", suite="t").absent()

    assert absent() == ["backbone.reference = 'mae:PATH': PATH does not exist (for released/finetune/seed0)"]
    assert absent("mae:PATH", "mea:PATH") == [
        "backbone.reference = 'mea:PATH': no layout 'mea'; did you mean 'mae'? (for released/finetune/seed0)"
    ]
    there = f"mae:{tmp_path / 'suite.py'}"
    assert (
        absent("mae:PATH", there)
        == absent("mae:PATH", "timm:vit_base_patch16_224.dino")
        == absent("mae:PATH", "released:beit_base")
        == []
    )
    (tokens,) = absent("mae:PATH", there, '"@tokens"', '"dalle:encoder.pkl"')
    assert tokens.startswith("target.tokenizer = 'dalle:encoder.pkl': encoder.pkl does not exist")
    (root,) = absent(
        "mae:PATH",
        there,
        "hours=2.0",
        'data="images"',
        "seeds = (0, 1)",
        'seeds = (0, 1)\nroots = {"images": "/no/such/folder"}',
    )
    missing = "data.root = '/no/such/folder': no such folder or pack; name it with --root NAME=PATH"
    assert root == f"{missing} (for pixel/pretrain/seed0)"


def test_a_circle_of_two_is_named(suite: Callable[..., Path]) -> None:
    target = 'set={"target": {"name": "feature", "teacher": "@token"}}'
    with pytest.raises(
        ValueError, match=r"in a cycle.*: pixel/pretrain/seed0.*token/pretrain/seed0|in a cycle.*: token.*pixel"
    ):
        open_plan(
            suite(
                "hours=2.0",
                target,
                '{"name": "token", "tokenizer": "@tokens"}',
                '{"name": "feature", "teacher": "@pixel"}',
            )
        )


def test_a_sweep_that_is_judged_otherwise_is_another_run(suite: Callable[..., Path], tmp_path: Path) -> None:
    identities = set()
    for metric in ("top1", "top5"):
        sweep = (
            f'sweep=dict(grid={{"optim.lr": (1e-3, 1e-4)}}, set={{"data.holdout_fraction": 0.1}}, metric="{metric}")'
        )
        file = suite('config="CONFIGS/classify/mini.py")', f'config="CONFIGS/classify/mini.py", {sweep})')
        identities.add(work(file, tmp_path / "d").identity("pixel/finetune/seed0"))
    assert len(identities) == 2


def test_detection_is_swept_on_other_images_than_those_that_are_reported(suite: Callable[..., Path]) -> None:
    tried = '{"data.val": {"name": "shapes", "size": 64, "length": 16, "seed": 5}}'
    sweep = f'sweep=dict(grid={{"optim.lr": (1e-3, 1e-4)}}, set={tried}, split="val", metric="bbox/AP")'
    _, plan = open_plan(
        suite(
            'tool="cls_train", config="CONFIGS/classify/mini.py")',
            f'tool="det_train", config="CONFIGS/detect/mini.py", {sweep})',
        )
    )
    assert plan["pixel/finetune/point1"].changes["data.val"]["seed"] == 5
    assert "data.val" not in plan["pixel/finetune/seed0"].changes


def test_roots_are_given_by_name(suite: Callable[..., Path]) -> None:
    file = suite('title = "t"', 'title = "t"\nroots = {"own": "unset"}', "hours=2.0", 'data="own"')
    _, plan = open_plan(file, roots={"own": "/data/own"})
    assert plan["pixel/pretrain/seed0"].changes["data.root"] == "/data/own"
    with pytest.raises(ValueError, match="has no data set of that name; it has own"):
        open_plan(file, roots={"imagenet": "x"})


def test_only_takes_what_is_needed_along(suite: Callable[..., Path]) -> None:
    _, plan = open_plan(suite())
    assert list(select(plan, ["token/finetune/seed1"])) == [
        "tokens/prepare",
        "token/pretrain/seed0",
        "token/finetune/seed1",
    ]
    assert select(plan, []) == plan
    with pytest.raises(ValueError, match="--only fine_tune: no run's name contains that"):
        select(plan, ["fine_tune"])


def test_names_are_folders() -> None:
    assert slug("pixel (w/ norm)") == "pixel_w_norm"


def work(file: Path, root: Path) -> Work:
    return Work(open_plan(file)[1], root, suite="t")


def done(work: Work, name: str) -> None:
    write_note(work.folder(name), work.note(work.plan[name], []).model_copy(update={"state": "done"}))
    (work.folder(name) / "results.jsonl").touch()
    if artifact := work.artifact(name):
        artifact.touch()


def test_what_is_done_stays_done_until_its_config_or_an_input_changes(
    suite: Callable[..., Path], tmp_path: Path
) -> None:
    before = work(suite(), tmp_path / "d")
    for name in before.plan:
        done(before, name)
    assert all(before.status(name).done for name in before.plan)
    after = work(suite('CONFIGS/mini/tokenizer.py"', 'CONFIGS/mini/tokenizer.py", set={"epochs": 9}'), tmp_path / "d")
    changed = [name for name in after.plan if not after.status(name).done]
    assert changed == ["tokens/prepare", "token/pretrain/seed0", "token/finetune/seed0", "token/finetune/seed1"]
    assert "input target.tokenizer (tokens/prepare): " in after.status("token/pretrain/seed0").why


def test_a_change_of_config_is_named_by_its_key(suite: Callable[..., Path], tmp_path: Path) -> None:
    before = work(suite(), tmp_path / "d")
    node = before.plan["pixel/pretrain/seed0"]
    done(before, node.name)
    (before.folder(node.name) / "config.py").write_text(before.config(node, {}).source())
    after = work(suite("hours=2.0", 'set={"epochs": 3}'), tmp_path / "d")
    assert after.status(node.name).why == "changed: epochs: 15.0 != 3.0"


def test_released_weights_are_an_input_by_their_content(suite: Callable[..., Path], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"a")
    file = suite("mae:PATH", f"mae:{weights}")
    first = work(file, tmp_path / "d").identity("released/finetune/seed0")
    assert work(file, tmp_path / "elsewhere").identity("released/finetune/seed0") == first
    weights.write_bytes(b"b")
    assert work(file, tmp_path / "d").identity("released/finetune/seed0") != first


def test_a_run_that_lost_its_artifact_is_not_done_and_a_note_of_another_version_is_named(
    suite: Callable[..., Path], tmp_path: Path
) -> None:
    here = work(suite(), tmp_path / "d")
    name = "pixel/pretrain/seed0"
    done(here, name)
    (here.folder(name) / "backbone.safetensors").unlink()
    assert not here.status(name).done
    (here.folder(name) / "node.json").write_text('{"form')
    assert here.status(name).replaced
    (here.folder(name) / "node.json").write_text('{"format": 7}')
    with pytest.raises(
        ValueError, match=r"node.json has format 7, but this version reads format 1: use another --work-dir"
    ):
        here.status(name)


def test_the_command_is_the_tools_own(suite: Callable[..., Path], tmp_path: Path) -> None:
    here = work(suite(), tmp_path / "d")
    words = here.command(here.plan["token/finetune/seed1"], {"optim.lr": 0.5})
    assert Path(words[1]).name == "cls_train.py"
    assert words[3:6] == ["--work-dir", str(tmp_path / "d" / "token/finetune/seed1"), "--resume"]
    assert f"backbone.reference='{tmp_path / 'd' / 'token/pretrain/seed0/backbone.safetensors'}'" in words
    assert {"seed=1", "optim.lr=0.5"} <= set(words)
    assert here.command(here.plan["token/pretrain/seed0"], {}, torchrun=["torchrun", "--standalone"])[:2] == [
        "torchrun",
        "--standalone",
    ]
