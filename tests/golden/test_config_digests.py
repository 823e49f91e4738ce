"""The committed digests of every config, of the parts that a config chooses by name, and of the runs of suites.

A digest that changes makes finished runs look like other runs: a suite repeats them, tables no longer group their
seeds. So a refactor must not change one. A new config needs no entry. `python tests/golden/test_config_digests.py`
records all of them again, for a change that should move some and explains why.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mae_transfer.ablations import points
from mae_transfer.config import Schema, load, read
from mae_transfer.suite.graph.plan import open_plan
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.frozen_segment import FrozenKnnConfig, FrozenLogRegConfig
from mae_transfer.tasks.joint import JointConfig
from mae_transfer.tasks.knn import KnnConfig
from mae_transfer.tasks.logreg import LogRegConfig
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.ridge import RidgeConfig
from mae_transfer.tasks.robustness import RobustnessConfig
from mae_transfer.tasks.segment import SegmentConfig
from mae_transfer.tasks.statistics import StatisticsConfig
from mae_transfer.tasks.tokenizer import TokenizerConfig

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("config_digests.json")
FOLDERS: dict[str, type[Schema]] = {"classify": ClassifyConfig, "detect": DetectConfig, "segment": SegmentConfig}
TASKS: dict[str, type[Schema]] = {
    "knn": KnnConfig, "ridge": RidgeConfig, "logreg": LogRegConfig, "statistics": StatisticsConfig,
    "robustness": RobustnessConfig, "frozen-knn": FrozenKnnConfig, "frozen-logreg": FrozenLogRegConfig,
    "joint": JointConfig,
}  # fmt: skip
PARTS = {
    "configs/pretrain/mae_vit_base_16_800e.py": (
        "mask={'name':'random'}",
        "mask={'name':'random','ratio':0.75}",
        "mask={'name':'random','ratio':0.6,'unit':2}",
        "mask={'name':'block'}",
        "mask={'name':'block','ratio':0.4,'min_block':4}",
        "mask={'name':'grid'}",
        "mask={'name':'grid','unit':2}",
        "mask.ratio=0.5",
        "target={'name':'pixel'}",
        "target={'name':'pixel','loss':'l1'}",
        "target={'name':'norm_pixel'}",
        "target={'name':'norm_pixel','eps':1e-6}",
        "target={'name':'norm_pixel','eps':1}",
        "target={'name':'pca','basis':'runs/pca/basis.safetensors'}",
        "target={'name':'pca','basis':'runs/pca/basis.safetensors','whiten':True}",
        "target={'name':'token','tokenizer':'runs/tok/tokenizer.safetensors'}",
        "target={'name':'token','tokenizer':'dalle:encoder.pkl','interpolation':'bicubic'}",
        "target={'name':'token','tokenizer':'runs/tok/tokenizer.safetensors','cache':'runs/codes'}",
        "target={'name':'hog'}",
        "target={'name':'hog','bins':8,'cell':4,'loss':'l1'}",
        "target={'name':'feature','teacher':'timm:vit_base_patch16_224.dino'}",
        "target={'name':'feature','teacher':'runs/a/backbone.safetensors','scale':'unit','size':(224,224)}",
        "target={'name':'feature','teacher':'runs/a/backbone.safetensors','loss':'cosine','size':224}",
        "target={'name':'mean_colour'}",
        "target={'name':'mean_colour','bits':4}",
        "data.train={'name':'folder'}",
        "data.train={'name':'folder','root':'/data/a/images','split':None,'labelled':False}",
        "data.train={'name':'folder','split':'train','labelled':False}",
        "data.train={'name':'photos'}",
        "data.train={'name':'photos','split':'train','held_out':0.1}",
        "data.train={'name':'shapes'}",
        "data.train={'name':'shapes','size':32,'length':100,'seed':3,'objects':(1,2),'kinds':5}",
        "data.augmentation={'name':'none'}",
        "data.augmentation={'name':'none','shorter_side':1}",
        "data.augmentation={'name':'none','shorter_side':1.0}",
        "data.augmentation={'name':'fixed_crop'}",
        "data.augmentation={'name':'fixed_crop','flip':0,'jitter':0.5}",
        "data.augmentation={'name':'random_crop'}",
        "data.augmentation={'name':'random_crop','scale':(0.2,1)}",
        "data.augmentation={'name':'random_crop','scale':(0.5,1.0),'interpolation':'bilinear'}",
        "data.augmentation={'name':'byol_crop'}",
        "data.augmentation={'name':'rand_augment'}",
        "data.augmentation={'name':'rand_augment','mean':(0.5,0.5,0.5),'policy':'rand-m6'}",
        "data.val={'name':'folder','split':'val'}",
        "data.val=None",
    ),
    "configs/classify/finetune_vit_base.py": (
        "protocol={'name':'finetune'}",
        "protocol={'name':'finetune','pool':'cls','mixup':0,'cutmix':0}",
        "protocol={'name':'finetune','drop_path':0.2}",
        "protocol={'name':'partial','tune_blocks':4}",
        "protocol={'name':'partial','tune_blocks':'half'}",
        "protocol={'name':'partial','tune_blocks':1,'tune_norm':False,'frozen_drop_path':True}",
        "protocol={'name':'linear'}",
        "protocol={'name':'linear','rates':(1,)}",
        "protocol={'name':'linear','rates':(0.1,),'pools':('mean',)}",
        "protocol.erase=0.25",
    ),
    "configs/detect/mask_rcnn_vitdet_base_100ep.py": (
        "adapter={'name':'tap_fpn'}",
        "adapter={'name':'tap_fpn','taps':(3,5,7,11),'norm':'batch','fpn':None}",
        "adapter={'name':'tap_fpn','taps':(3,5,7,11),'fpn_norm':'batch','p6':True,'scales':'relative'}",
        "adapter={'name':'simple_fpn'}",
        "adapter={'name':'simple_fpn','channels':128,'norm':'batch','p6':False}",
        "data.train={'name':'coco'}",
        "data.train={'name':'coco','annotations':'labels.json','images':'photos','first':8,'part':(0,0.5)}",
        "data.train={'name':'coco','split':'train2017','masks':False}",
        "data.train={'name':'shapes','size':96}",
        "data.augmentation={'name':'large_scale_jitter'}",
        "data.augmentation={'name':'large_scale_jitter','size':(512,640),'scale':(0.5,1)}",
        "data.augmentation={'name':'shortest_edge','lengths':(480,800),'longest':1000}",
        "engine=detectron2",
    ),
    "configs/segment/upernet_vit_base_160k.py": (
        "protocol={'name':'upernet'}",
        "protocol={'name':'upernet','taps':(3,5,7,11),'auxiliary':0,'dropout':0}",
        "protocol={'name':'upernet','relative_positions':'shared','positions':'learned','layer_scale':1}",
        "protocol={'name':'upernet','class_token':False,'decays':'published','channels':64}",
        "protocol={'name':'linear'}",
        "protocol={'name':'linear','taps':(11,)}",
        "data.train={'name':'ade'}",
        "data.train={'name':'ade','split':'train','classes':['a','b'],'reduce_zero_label':False}",
        "data.train={'name':'ade','values':[0,255],'image_suffix':'_a.png','map_suffix':'_b.png','allow_absent':True}",
        "data.train={'name':'shapes','kinds':4}",
        "data.train={'name':'ade','part':(0,1)}",
    ),
}
"""Config -> overrides. Each is one `--set`: an option that is given differs from one that is left at its default."""
SUITES = ("mini", "mini_seeds", "figure9_search", "own_classification", "table3", "zoo")


def schema_of(config: str) -> type[Schema]:
    """Return the schema of a config in configs/."""
    if "tokenizer" in config:
        return TokenizerConfig
    return TASKS.get(str(read(ROOT / config).get("task"))) or FOLDERS.get(Path(config).parent.name, PretrainConfig)


def digests(cfg: Schema) -> list[str]:
    return [cfg.digest(), cfg.recipe_digest()]


def of_files() -> dict[str, list[str]]:
    """Return the digests of every config, and of every row of an ablation at both scales; with --debug, too."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "configs").rglob("*.py")):
        config = path.relative_to(ROOT).as_posix()
        if config.startswith("configs/suites/"):
            continue
        if config.startswith("configs/ablations/"):
            for scale in ("paper", "mini"):
                for point in points(path, scale):
                    cfg: Schema = load(point.config, PretrainConfig, changes=point.changes)
                    found[f"{config} --row {point.row!r}{' --mini' * (scale == 'mini')}"] = digests(cfg)
            continue
        schema = schema_of(config)
        found[config] = digests(load(path, schema))
        found[f"{config} --debug"] = digests(load(path, schema, debug=True))
    return found


def of_parts() -> dict[str, list[str]]:
    """Return the digests of the configs of PARTS with each of their overrides."""
    return {
        f"{config} --set {override}": digests(load(ROOT / config, schema_of(config), overrides=[override]))
        for config, overrides in PARTS.items()
        for override in overrides
    }


def of_suites() -> dict[str, list[str]]:
    """Return the digests of every run of some suites."""
    return {
        f"configs/suites/{suite}.py {node.name}": digests(node.load(node.changes))
        for suite in SUITES
        for node in open_plan(ROOT / "configs" / "suites" / f"{suite}.py")[1].values()
    }


KINDS = {"files": of_files, "parts": of_parts, "suites": of_suites}


@pytest.mark.parametrize("kind", KINDS)
def test_no_digest_has_changed(kind: str) -> None:
    found, wanted = KINDS[kind](), json.loads(GOLDEN.read_text(encoding="utf-8"))[kind]
    assert {name: found.get(name) for name in wanted} == wanted


if __name__ == "__main__":
    sections = (
        f'"{kind}": {{\n' + ",\n".join(f"{json.dumps(name)}: {json.dumps(pair)}" for name, pair in of().items()) + "\n}"
        for kind, of in KINDS.items()
    )
    GOLDEN.write_text("{\n" + ",\n".join(sections) + "\n}\n", encoding="utf-8")
