"""config.py: strict loading, overrides, and errors that name the key and the remedy."""

import math
import os
import pickle
import pwd
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from mae_transfer.config import Part, Schema, assign, load, load_saved, members, validate
from mae_transfer.data.maps import MapDataConfig
from mae_transfer.disk import at_home
from mae_transfer.targets import NormPixelConfig
from mae_transfer.tasks.classify import Classify
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.reconstruct import reconstruct
from mae_transfer.tasks.segment import Segment
from mae_transfer.tasks.workdir import open_work_dir

ROOT = Path(__file__).parents[2]


class Optim(Schema):
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


class Run(Schema):
    workers: int = 2


class PixelPart(Part):
    name: Literal["pixel"] = "pixel"


class NormPixelPart(Part):
    name: Literal["norm_pixel"] = "norm_pixel"
    eps: PositiveFloat = 1e-6
    shift: float = 0.0


class TokenPart(Part):
    name: Literal["token"] = "token"
    tokenizer: str


AnyPart = Annotated[PixelPart | NormPixelPart | TokenPart, Field(discriminator="name")]


class Example(Schema):
    debug: ClassVar[Mapping[str, Any]] = {"steps": 2, "run.workers": 0, "target.tokenizer?": "random"}
    steps: PositiveInt
    root: str | None = None
    optim: Optim = Optim()
    head: Optim | None = None
    target: AnyPart = PixelPart()
    other: AnyPart | None = None
    run: Run = Run()


def write(folder: Path, text: str, name: str = "cfg.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_base_file_overrides_and_debug_are_laid_over_each_other_in_this_order(tmp_path: Path) -> None:
    write(tmp_path, "steps = 5\noptim = dict(lr=0.5)\nroot = 'a'", "base.py")
    path = write(tmp_path, '_base_ = "base.py"\noptim = dict(betas=(0.8, 0.9))')
    assert load(path, Example) == Example(steps=5, root="a", optim=Optim(lr=0.5, betas=(0.8, 0.9)))
    cfg = load(
        path, Example, overrides=["steps=7", "optim.lr=1e-3", "root=/data/x y", "target.name=norm_pixel"], debug=True
    )
    assert (cfg.steps, cfg.optim.lr, cfg.root, cfg.target.name, cfg.run.workers) == (
        7,
        1e-3,
        "/data/x y",
        "norm_pixel",
        0,
    )


@pytest.mark.parametrize(("config", "schema", "options"), [
    ("pretrain/own_photos_one_gpu.py", "pretrain.PretrainConfig", ("data.train.name=photos", "monitor.data.root=/x")),
    ("pretrain/dino_small_64px.py", "joint.JointConfig", ("data.train.name=photos", "data.val.name=photos")),
    ("classify/small_finetune.py", "classify.ClassifyConfig", ("data.train.labelled=labels.txt",)),
    ("detect/mask_rcnn_vitdet_base_one_gpu.py", "detect.DetectConfig", (
        "data.train.part=(0.0, 0.9)", "data.holdout={'name': 'coco', 'split': 'train2017', 'part': (0.9, 1.0)}",
    )),
])  # fmt: skip
def test_debug_sets_options_of_the_replaced_data_aside_and_says_so(
    config: str, schema: str, options: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    kind, more = resolve_name(f"mae_transfer.tasks.{schema}"), ["select=best"] if "detect" in config else []
    given = ["data.root=/x", "data.val.length=3", *more, *options]
    cfg: Any = load(ROOT / "configs" / config, kind, overrides=given, debug=True)
    assert cfg.data.val.length == 3
    assert {part.name for part in (cfg.data.train, cfg.data.val)} == {"shapes"}
    assert getattr(cfg, "monitor", None) is None
    assert cfg.data.root == "/x"
    said = [one.split("--set ")[1].removesuffix(" has no effect") for one in caplog.messages]
    assert said == ["data.root=/x are not read", *options]


@pytest.mark.parametrize(("text", "match"), [
    ("steps = 1\noptim = dict(lrr=1.0)", "unknown key 'optim.lrr'; did you mean 'lr'"),
    ("steps = 1\nhead = dict(beta=(0.1, 0.2))", "unknown key 'head.beta'; did you mean 'betas'"),
    ("stepz = 1", "did you mean 'steps'"),
    ("root = 'a'", "key 'steps' is required and missing"),
    ("steps = 1\nhead = dict(betas=(0.1,))", "key 'head.betas.1' is required and missing"),
    ("steps = '3'", "steps = '3': Input should be a valid integer"),
    ("steps = 0", "steps = 0: Input should be greater than 0"),
    ("steps = (", "cannot be read"),
    ("import nothing_of_that_name", "cannot be read: ModuleNotFoundError"),
])  # fmt: skip
def test_each_mistake_is_one_error_that_names_file_key_and_remedy(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        load(write(tmp_path, text), Example)
    assert "cfg.py" in str(error.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load(write(tmp_path, "stepz = 1\noptim = dict(lrr=1.0)"), Example)
    assert all(part in str(error.value) for part in ("stepz", "optim.lrr", "'steps' is required"))


def test_a_missing_file_and_a_malformed_override_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.py' does not exist; --list shows the provided ones"):
        load(tmp_path / "absent.py", Example)
    (tmp_path / "mae_small_64px.py").touch()
    with pytest.raises(ValueError, match=r"mae_smal_64px.py' does not exist; did you mean .*/mae_small_64px\.py\?"):
        load(tmp_path / "mae_smal_64px.py", Example)
    with pytest.raises(ValueError, match="write it as key=value"):
        load(write(tmp_path, "steps = 1"), Example, overrides=["steps"])
    with pytest.raises(ValueError, match="'steps' is a value, not a group"):
        load(write(tmp_path, "steps = 1"), Example, overrides=["steps.more=2"])


def test_debug_replaces_some_values_only_where_the_file_has_them(tmp_path: Path) -> None:
    path = write(tmp_path, "steps = 9\ntarget = dict(name='token', tokenizer='/ckpt/encoder.pkl')")
    assert load(path, Example, debug=True).target == TokenPart(tokenizer="random")
    assert load(path, Example).target == TokenPart(tokenizer="/ckpt/encoder.pkl")
    assert load(write(tmp_path, "steps = 9"), Example, debug=True).target == PixelPart()


def test_what_is_laid_over_a_group_of_debug_or_of_a_row_is_gone_with_the_next_load(tmp_path: Path) -> None:
    class Grouped(Example):
        debug: ClassVar[Mapping[str, Any]] = {"optim": {"lr": 0.5}}

    path, changes = write(tmp_path, "steps = 7\n"), {"head": {"lr": 0.3}}
    changed = load(path, Grouped, changes=changes, overrides=["optim.lr=0.9", "head.lr=0.8"], debug=True)
    assert (changed.optim.lr, changed.head and changed.head.lr) == (0.9, 0.8)
    again = load(path, Grouped, changes=changes, debug=True)
    assert (again.optim.lr, again.head and again.head.lr) == (0.5, 0.3)


def test_the_resolved_source_loads_back_to_an_equal_config(tmp_path: Path) -> None:
    cfg = Example(steps=3, head=Optim(), target=NormPixelPart(eps=1e-5))
    assert load(write(tmp_path, cfg.source("header")), Example) == cfg


def test_a_saved_config_is_read_without_running_it(tmp_path: Path) -> None:
    cfg = Example(
        steps=3, head=Optim(betas=(0.5, 1e-9)), root="it's {{ fileDirname }}", target=NormPixelPart(shift=-1.0)
    )
    path = write(tmp_path, cfg.source("header"))
    assert load_saved(path, Example) == cfg
    path.write_text(f"steps = 3\nroot = open({str(tmp_path / 'made')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"cfg.py, line 2: .*`name = literal` only"):
        load_saved(path, Example)
    for text in (
        "import os",
        "steps = other = 3",
        "steps: int = 3",
        "steps, root = 3, 'a'",
        "print(1)",
        "root = {{}: 1}",
    ):
        path.write_text(f"steps = 3\n{text}\n")
        with pytest.raises(ValueError, match="cfg.py, line 2: "):
            load_saved(path, Example)
    for content in (b"steps = (", b"steps = '\xff'", b"steps = \0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cfg.py cannot be read .*restore the file"):
            load_saved(path, Example)
    with pytest.raises(ValueError, match="absent.py does not exist: name the work dir of a run"):
        load_saved(tmp_path / "absent.py", Example)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("read", [
    lambda run, state, cfg: Classify.as_trained(cfg, state),
    lambda run, state, cfg: Segment.as_trained(cfg, state),
    lambda run, state, cfg: open_work_dir(run, cfg, resume=True),
    lambda run, state, cfg: reconstruct(run, None, mask_ratios=None, out=run),
])  # fmt: skip
def test_no_reader_of_a_work_dir_runs_its_config(tmp_path: Path, read: Callable[[Path, str, Any], object]) -> None:
    (tmp_path / "config.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'made')!r}).touch()\n")
    state = tmp_path / "checkpoints" / "step_00000001.pt"
    state.parent.mkdir()
    state.touch()
    with pytest.raises(ValueError, match="config.py, line 1: "):
        read(tmp_path, str(state), Example(steps=1))
    assert not (tmp_path / "made").exists()


def test_the_digest_sees_every_value_but_how_it_is_run() -> None:
    cfg = Example(steps=3)
    assert cfg.digest() == Example(steps=3, run=Run(workers=9)).digest()
    others = [
        Example(steps=4),
        Example(steps=3, root="a"),
        Example(steps=3, optim=Optim(lr=0.2)),
        Example(steps=3, target=NormPixelPart()),
    ]
    assert len({cfg.digest(), *(other.digest() for other in others)}) == 5
    assert cfg.differences(Example(steps=3, optim=Optim(lr=0.2), run=Run(workers=9))) == ["optim.lr: 0.1 != 0.2"]


def test_seeds_of_one_recipe_share_its_digest_whatever_weights_they_start_from() -> None:
    def recipe(**changes: Any) -> str:
        return DetectConfig.model_validate(
            {"scale": "mini", "epochs": 1, "batch": 4, "optim": {"lr": 0.1}} | changes
        ).recipe_digest()

    assert recipe() == recipe(seed=1) == recipe(seed=2, backbone={"reference": "runs/mae_2/backbone.safetensors"})
    assert len({recipe(), recipe(batch=8), recipe(backbone={"changes": {"positions": "learned"}})}) == 3


@pytest.mark.parametrize(("target", "match"), [
    ({"name": "norm_pixle"}, "target: unknown name 'norm_pixle'; did you mean 'norm_pixel'?"),
    ({"name": "norm_pixel", "epz": 1.0}, "unknown key 'target.epz' of 'norm_pixel'; did you mean 'eps'?"),
    ({"name": "norm_pixel", "eps": "3"}, "target.eps = '3': Input should be a valid number"),
    ({"name": "norm_pixel", "eps": -1}, "target.eps = -1: Input should be greater than 0"),
    ({"name": "token"}, "key 'target.tokenizer' is required and missing"),
    ({"eps": 1.0}, "key 'target.name' is required and missing"),
    ("pixel", r"target = 'pixel': write it as dict\(name=...\)"),
])  # fmt: skip
def test_a_mistake_in_a_part_names_its_key_and_the_remedy(target: object, match: str) -> None:
    for field in ("target", "other"):
        with pytest.raises(ValueError, match=match.replace("target", field)) as error:
            validate({"steps": 3, field: target}, Example, where="test")
        assert str(error.value).count("test: ") == 1


def test_a_copy_of_a_part_with_other_options_is_saved_with_them() -> None:
    """A former defect: the copy was saved, and digested, with the options of the original."""
    target = NormPixelConfig(eps=1e-5)
    assert target.model_copy(update={"eps": 1e-3}).model_dump() == {"name": "norm_pixel", "eps": 1e-3}
    assert target.model_copy().model_dump() == target.model_dump()
    with pytest.raises(ValueError, match="eps"):
        target.model_copy(update={"eps": math.nan})


def test_a_part_is_saved_as_it_was_given() -> None:
    given = {"name": "norm_pixel", "eps": 1}
    cfg = validate({"steps": 3, "target": given}, Example, where="test")
    assert isinstance(cfg.target, NormPixelPart)
    assert isinstance(cfg.target.eps, float)
    assert cfg.model_dump()["target"] == given
    assert type(cfg.model_dump(mode="json")["target"]["eps"]) is int, "the digest of an earlier version"
    assert NormPixelPart().model_dump() == {"name": "norm_pixel"}
    changed = pickle.loads(pickle.dumps(cfg.target)).model_copy(update={"shift": 0.5})
    assert changed.model_dump() == {**given, "shift": 0.5}
    with pytest.raises(ValueError, match="unknown key 'shfit' of 'norm_pixel'; did you mean 'shift'"):
        cfg.target.model_copy(update={"shfit": 0.5})


def test_the_choices_of_a_field_are_known_by_name() -> None:
    for field in Example.model_fields["target"], Example.model_fields["other"]:
        assert members(field.annotation) == {"pixel": PixelPart, "norm_pixel": NormPixelPart, "token": TokenPart}


def test_assign_makes_the_levels_that_are_missing() -> None:
    values: dict[str, Any] = {}
    assign(values, "a.b.c", 1)
    assert values == {"a": {"b": {"c": 1}}}


def test_a_tilde_is_the_home_folder_in_every_string_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells do not expand it after an =: --set data.root=~/data, --backbone=mae:~/mae.pth."""
    monkeypatch.setenv("HOME", "/users/me")
    paths = ("~/a b", "~", "mae:~/m.pth", "mae-full:~/m.pth", "a~/b", "x:y:~/z", "/~/a", "~cls", "~cls/a")
    assert [at_home(path) for path in paths] == [
        "/users/me/a b", "/users/me", "mae:/users/me/m.pth", "mae-full:/users/me/m.pth", "a~/b", "x:y:~/z", "/~/a",
        "~cls", "~cls/a",
    ]  # fmt: skip
    user = pwd.getpwuid(os.getuid())
    assert at_home(f"mae:~{user.pw_name}/m.pth") == f"mae:{user.pw_dir}/m.pth"
    cfg = validate(
        {"root": "~/a", "train": {"name": "ade", "root": "~/b", "classes": ("~/c", "d")}}, MapDataConfig, where="test"
    )
    assert (cfg.root, cfg.train.root) == ("/users/me/a", "/users/me/b")
