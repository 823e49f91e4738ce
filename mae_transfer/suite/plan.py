"""A suite's config becomes a graph of runs: tokenizer -> pretraining -> transfer, each with what it needs.

Everything that can be wrong with a suite is an error here, before anything runs: unknown rows and references, cycles, two runs of one name,
a config that does not load.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.config import Schema, load, nearest, read, validate
from mae_transfer.suite.grid import Overrides, points, slug
from mae_transfer.suite.records import Role
from mae_transfer.suite.schema import Preparation, Source, Step, SuiteConfig, Sweep, Transfer
from mae_transfer.suite.toolbox import TOOLBOX, Tool

DEBUG_DEPTH = 4  # blocks, which the --debug of the transfers counts on


class Node(NamedTuple):
    """One run."""

    name: str  # also its folder in the work dir
    role: Role
    row: str  # the tables' name of the pretraining
    kind: str  # an entry of TOOLBOX
    config: Path
    changes: Overrides  # dotted key -> value; "@NODE" is what that node leaves
    seed: int
    needs: tuple[str, ...]  # the nodes whose artifacts it takes
    points: tuple[str, ...] = ()  # the nodes of the sweep that chooses some of its values
    sweep: Sweep | None = None  # of a point, too
    point: tuple[tuple[str, Any], ...] = ()  # of a point: the values that it tries
    hours: float | None = None
    gib: float | None = None

    @property
    def tool(self) -> Tool:
        return TOOLBOX[self.kind]

    def load(self, changes: Mapping[str, Any], *, debug: bool = False) -> Schema:
        """Return the run's resolved config under these changes; with `debug` as the tool's --debug does."""
        laid, over = ({}, texts(self.kept(changes))) if debug else (changes, [])
        return load(self.config, self.tool.schema(self.config), changes=laid, overrides=over, debug=debug)

    def kept(self, changes: Mapping[str, Any]) -> Overrides:
        """Return the changes that a run with --debug keeps: its seed and what it takes from other runs; the rest would undo the overlay."""
        linked = {key for key, value in self.changes.items() if replaced(value, lambda _: "") != value}
        kept = {key: value for key, value in changes.items() if key == "seed" or key in linked}
        return {**kept, "model.encoder.depth": DEBUG_DEPTH} if self.kind == "pretrain" else kept


Plan = dict[str, Node]  # in an order in which they can run


def open_plan(file: Path, *, roots: Mapping[str, str] | None = None) -> tuple[SuiteConfig, Plan]:
    """Return the suite of a config file and its runs, every config checked.

    Args:
        roots: by name, where data sets lie; laid over the file's.
    Raises:
        ValueError: names the file, the run and the remedy.
    """
    cfg = validate(read(file), SuiteConfig, where=str(file))
    unknown = sorted(set(roots or {}) - set(cfg.roots))
    if unknown:
        raise ValueError(
            f"--root {unknown[0]}=...: {file} has no such data set; it has {', '.join(cfg.roots) or 'none'}"
        )
    cfg = cfg.model_copy(update={"roots": {**cfg.roots, **(roots or {})}})
    plan = ordered(expand(cfg, file.parent))
    for node in plan.values():
        try:
            resolved: Any = node.load(node.changes)
            if (
                node.sweep
                and node.sweep.split == "holdout"
                and node.role == "point"
                and not getattr(resolved.data, "holdout_fraction", 0.0)
            ):
                raise ValueError(
                    "its sweep is judged on 'holdout', but nothing is held out: add set={'data.holdout_fraction': 0.1} to the sweep"
                )
        except ValueError as error:
            raise ValueError(f"run {node.name!r} of {file}: {error}") from None
    return cfg, plan


def expand(cfg: SuiteConfig, folder: Path) -> list[Node]:
    """Return the nodes in the order of the file."""
    rows = rows_of(cfg, folder)
    seeds = cfg.seeds if cfg.pretrain_seeds == "each" else cfg.seeds[:1]
    names = Names(cfg.prepare, rows, seeds)
    nodes = [preparation(cfg, folder, name, step, names) for name, step in cfg.prepare.items()]
    nodes += [
        pretraining(cfg, folder, row, source, seed, names)
        for row, source in rows.items()
        if source.config
        for seed in seeds
    ]
    for title, transfer in cfg.transfer.items():
        for row in chosen_rows(title, transfer, rows):
            nodes += transfers(cfg, folder, title, transfer, row, rows[row], names)
    return nodes


def rows_of(cfg: SuiteConfig, folder: Path) -> dict[str, Source]:
    """Return the rows of the file and those of its grid."""
    rows = dict(cfg.rows)
    if cfg.grid is not None:
        for point in points(folder / cfg.grid.file, cfg.grid.scale):
            if point.row in rows:
                raise ValueError(
                    f"row {point.row!r} stands in `rows` and in {cfg.grid.file}: two pretrainings of one name"
                )
            own, base = {**point.changes, **cfg.grid.set.get(point.row, {})}, os.path.relpath(point.config, folder)
            hours = cfg.grid.hours.get(point.row) if isinstance(cfg.grid.hours, dict) else cfg.grid.hours
            rows[point.row] = Source(config=base, set=own, data=cfg.grid.data, hours=hours, gib=cfg.grid.gib)
    if not rows:
        raise ValueError(
            "the suite has no rows: name pretrainings or backbones under `rows`, or an ablation under `grid`"
        )
    return rows


def chosen_rows(title: str, transfer: Transfer, rows: Mapping[str, Source]) -> Sequence[str]:
    """Return the rows that a transfer takes."""
    for row in transfer.rows or ():
        if row not in rows:
            raise ValueError(
                f"transfer {title!r} takes row {row!r}, which is none of the suite's; {nearest(row, rows)}"
            )
    return transfer.rows or list(rows)


class Names:
    """How nodes are called, and which node a reference means."""

    def __init__(self, prepare: Mapping[str, Preparation], rows: Mapping[str, Source], seeds: Sequence[int]) -> None:
        both = sorted(set(prepare) & set(rows))
        if both:
            raise ValueError(
                f"{both[0]!r} is the name of a preparation and of a row: a reference to it would be ambiguous"
            )
        self._seeds, self._prepare, self._rows = seeds, prepare, rows

    def pretraining(self, row: str, seed: int) -> str:
        """Return the node that pretrains a row for the transfers of a seed."""
        return f"{slug(row)}/pretrain/seed{seed if seed in self._seeds else self._seeds[0]}"

    def node_of(self, reference: str, seed: int, *, where: str) -> str:
        """Return the node whose artifact "@name" is."""
        name = reference.removeprefix("@")
        if name in self._prepare:
            return f"{slug(name)}/prepare"
        if name in self._rows and self._rows[name].config:
            return self.pretraining(name, seed)
        pretrained = [row for row, source in self._rows.items() if source.config]
        raise ValueError(
            f"{where}: {reference!r} refers to nothing that the suite makes; {nearest(name, [*self._prepare, *pretrained])}"
        )

    def linked(self, changes: Overrides, seed: int, *, where: str) -> tuple[Overrides, tuple[str, ...]]:
        """Return the changes with each "@name" replaced by its "@NODE", and the nodes."""
        found: dict[str, None] = {}

        def link(reference: str) -> str:
            node = self.node_of(reference, seed, where=where)
            found[node] = None
            return "@" + node

        return replaced(changes, link), tuple(found)


def preparation(cfg: SuiteConfig, folder: Path, name: str, step: Preparation, names: Names) -> Node:
    """Return the node of a tokenizer or a basis."""
    seed = cfg.seeds[0]
    changes, needs = names.linked({**step.set, **root_of(cfg, step, name)}, seed, where=f"preparation {name!r}")
    role: Role = "tokenizer" if step.kind == "dvae" else "basis"
    if step.kind == "dvae":
        changes["seed"] = seed
    return Node(
        f"{slug(name)}/prepare",
        role,
        name,
        step.kind,
        beside(folder, step.config),
        changes,
        seed,
        needs,
        hours=step.hours,
        gib=step.gib,
    )


def pretraining(cfg: SuiteConfig, folder: Path, row: str, source: Source, seed: int, names: Names) -> Node:
    """Return the node of a pretraining."""
    changes, needs = names.linked({**source.set, **root_of(cfg, source, row), "seed": seed}, seed, where=f"row {row!r}")
    assert source.config is not None
    name = names.pretraining(row, seed)
    return Node(
        name,
        "pretrain",
        source.row or row,
        "pretrain",
        beside(folder, source.config),
        changes,
        seed,
        needs,
        hours=source.hours,
        gib=source.gib,
    )


def transfers(
    cfg: SuiteConfig, folder: Path, title: str, transfer: Transfer, row: str, source: Source, names: Names
) -> Iterator[Node]:
    """Yield the nodes of one transfer of one row: the points of its sweep, then a run per seed."""
    where = f"transfer {title!r} of row {row!r}"
    seeds, base = transfer.seeds or cfg.seeds, f"{slug(row)}/{slug(title)}"
    given = {**transfer.set, **source.fresh, **source.fresh_in.get(title, {}), **root_of(cfg, transfer, title)}
    if source.config or source.backbone:
        given["backbone.reference"] = source.backbone or f"@{row}"

    def node(name: str, seed: int, role: Role, extra: Overrides) -> Node:
        changes, needs = names.linked({**given, **extra, "seed": seed}, seed, where=where)
        config = beside(folder, transfer.config)
        return Node(
            name,
            role,
            source.row or row,
            transfer.tool,
            config,
            changes,
            seed,
            needs,
            hours=transfer.hours,
            gib=transfer.gib,
        )

    points: list[str] = []
    if transfer.sweep is not None:
        for number, values in enumerate(itertools.product(*transfer.sweep.grid.values())):
            point = dict(zip(transfer.sweep.grid, values, strict=True))
            points.append(f"{base}/point{number}")
            hours = transfer.hours if transfer.sweep.hours is None else transfer.sweep.hours
            tried = node(points[-1], seeds[0], "point", {**transfer.sweep.set, **point})
            yield tried._replace(point=tuple(point.items()), sweep=transfer.sweep, hours=hours)
    for seed in seeds:
        yield node(f"{base}/seed{seed}", seed, "transfer", {})._replace(points=tuple(points), sweep=transfer.sweep)


def ordered(nodes: Iterable[Node]) -> Plan:
    """Return the nodes by name in an order in which they can run; ValueError for a cycle, or two nodes of one name."""
    plan: Plan = {}
    for node in nodes:
        if node.name in plan:
            raise ValueError(
                f"two runs are called {node.name!r} (rows {plan[node.name].row!r} and {node.row!r}): rename one"
            )
        plan[node.name] = node
    try:
        order = list(
            TopologicalSorter({node.name: (*node.needs, *node.points) for node in plan.values()}).static_order()
        )
    except CycleError as error:
        raise ValueError(f"the runs wait for each other in a circle: {' -> '.join(reversed(error.args[1]))}") from None
    levels = levels_of(plan, order)
    return {name: node for level in range(len(plan)) for name, node in plan.items() if levels[name] == level}


def levels_of(plan: Plan, order: Iterable[str]) -> dict[str, int]:
    """Return for each run the length of the longest chain that leads to it; `order`: the names, each behind what it needs."""
    levels: dict[str, int] = {}
    for name in order:
        levels[name] = 1 + max((levels[need] for need in (*plan[name].needs, *plan[name].points)), default=-1)
    return levels


def select(plan: Plan, patterns: Sequence[str]) -> Plan:
    """Return the runs whose name contains one of the patterns, with everything that they need; ValueError for a pattern that fits none."""
    wanted: dict[str, None] = {}

    def take(name: str) -> None:
        wanted[name] = None
        for need in (*plan[name].needs, *plan[name].points):
            take(need)

    for pattern in patterns:
        found = [name for name in plan if pattern in name]
        if not found:
            raise ValueError(f"--only {pattern}: no run's name contains that; {nearest(pattern, plan)}")
        for name in found:
            take(name)
    return {name: node for name, node in plan.items() if name in wanted or not patterns}


def replaced(value: Any, swap: Callable[[str], str]) -> Any:
    """Return a value with every "@name" in it, however deep, replaced by what `swap` makes of it."""
    if isinstance(value, dict):
        return {key: replaced(inner, swap) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(inner, swap) for inner in value)
    return swap(value) if isinstance(value, str) and value.startswith("@") else value


def texts(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as a tool's --set takes them."""
    return [f"{key}={value!r}" for key, value in changes.items()]


def beside(folder: Path, config: str) -> Path:
    """Return a config's path, relative to the suite's, without the way back and forth."""
    return Path(os.path.normpath(folder / config))


def root_of(cfg: SuiteConfig, step: Step, title: str) -> Overrides:
    """Return the change that says where the images of a step lie."""
    if step.data is None:
        return {}
    if step.data not in cfg.roots:
        raise ValueError(f"{title!r} takes data {step.data!r}, which `roots` has not; {nearest(step.data, cfg.roots)}")
    return {"data.root": cfg.roots[step.data]}
