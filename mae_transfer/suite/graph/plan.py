"""Turns the config of a suite into a graph of runs: tokenizer -> pretraining -> transfer.

Mistakes in a suite are errors here, before anything runs: unknown rows and references, cycles, two runs with one name,
configs that do not load.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.ablations import Overrides, points, slug
from mae_transfer.config import Schema, flatten, load, nearest, read, validate
from mae_transfer.suite.graph.schema import (
    Preparation,
    Resources,
    Search,
    SuiteConfig,
    SuiteRow,
    SuiteTransfer,
)
from mae_transfer.suite.graph.toolbox import TOOLBOX, Tool
from mae_transfer.suite.store.records import Role

DEBUG_DEPTH = 4  # blocks of the pretrained encoder that transfers expect with --debug


class Node(NamedTuple):
    """One run."""

    name: str  # also its folder in the work dir
    role: Role
    row: str  # name of the pretraining in the tables
    kind: str  # an entry of TOOLBOX
    config: Path
    changes: Overrides  # dotted key -> value; "@NODE" stands for the artifact of that node
    seed: int
    needs: tuple[str, ...]  # the nodes whose artifacts it reads
    points: tuple[str, ...] = ()  # the runs of the sweep that chooses some of its values
    sweep: Search | None = None  # also set for the runs of the sweep
    point: tuple[tuple[str, Any], ...] = ()  # for a run of a sweep: the values that it tries
    resources: Resources = Resources()
    hours: float | None = None  # estimated device hours on `device`
    device: str = ""
    gib: float | None = None

    @property
    def tool(self) -> Tool:
        return TOOLBOX[self.kind]

    def load(self, changes: Mapping[str, Any], *, debug: bool = False) -> Schema:
        """Return the resolved config of the run with these changes; `debug` applies the overlay of --debug."""
        base, overrides = ({}, assignments(self.debug_changes(changes))) if debug else (changes, [])
        return load(self.config, self.tool.schema(self.config), changes=base, overrides=overrides, debug=debug)

    def inputs(self) -> list[tuple[str, str]]:
        """Return (dotted key, name of the node) for each value of the config that is another run's file."""
        values = [(key, each) for key, value in flatten(self.changes).items() for each in _each(value)]
        return [(key, value[1:]) for key, value in values if isinstance(value, str) and value.startswith("@")]

    def debug_changes(self, changes: Mapping[str, Any]) -> Overrides:
        """Return the changes that apply with --debug: the seed and the files of other runs.

        The other changes would undo the overlay.
        """
        linked = {key for key, value in self.changes.items() if replaced(value, lambda _: "") != value}
        kept = {key: value for key, value in changes.items() if key == "seed" or key in linked}
        return {**kept, "model.encoder.depth": DEBUG_DEPTH} if self.kind == "pretrain" else kept


Plan = dict[str, Node]  # by name, in an order in which they can run


def open_plan(
    file: Path, *, roots: Mapping[str, str] | None = None, remembered: Mapping[str, str] | None = None
) -> tuple[SuiteConfig, Plan]:
    """Return the suite of a config file and its runs, with every config checked.

    Args:
        roots: folders of data sets by name; they replace those of the file.
        remembered: the same from earlier commands, for the names that `roots` lacks.
    Raises:
        ValueError: names the file, the run and the remedy.
    """
    cfg = validate(read(file), SuiteConfig, where=str(file))
    unknown = sorted(set(roots or {}) - set(cfg.roots))
    if unknown:
        raise ValueError(
            f"--root {unknown[0]}=...: {file} has no data set of that name; it has {', '.join(cfg.roots) or 'none'}"
        )
    earlier = {name: path for name, path in (remembered or {}).items() if name in cfg.roots}
    cfg = cfg.model_copy(update={"roots": {**cfg.roots, **earlier, **(roots or {})}})
    plan = ordered(Expansion(cfg, file.parent).nodes())
    if cfg.order == "rows":
        plan = by_row(plan, cfg.about().rows)
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
                    "its sweep has split = 'holdout', but no images are held out: "
                    "add set={'data.holdout_fraction': 0.1} to the sweep"
                )
        except ValueError as error:
            raise ValueError(f"run {node.name!r} of {file}: {error}") from None
    return cfg, plan


def rows_of(cfg: SuiteConfig, folder: Path) -> dict[str, SuiteRow]:
    """Return the rows of the suite, including those of its grid."""
    rows = dict(cfg.rows)
    if cfg.grid is not None:
        for point in points(folder / cfg.grid.file, cfg.grid.scale):
            if point.row in rows:
                raise ValueError(
                    f"row {point.row!r} is in `rows` and in {cfg.grid.file}: rename or remove the one in `rows`"
                )
            changes, base = {**point.changes, **cfg.grid.set.get(point.row, {})}, os.path.relpath(point.config, folder)
            hours = cfg.grid.hours.get(point.row) if isinstance(cfg.grid.hours, dict) else cfg.grid.hours
            limits = cfg.grid.model_dump(include=set(Resources.model_fields))
            rows[point.row] = SuiteRow(
                config=base, set=changes, data=cfg.grid.data, hours=hours, gib=cfg.grid.gib, **limits
            )
    if not rows:
        raise ValueError(
            "the suite has no rows: add pretrainings or backbones to `rows`, or name an ablation in `grid`"
        )
    return rows


class Expansion:
    """The runs of a suite in the order of its file, and the runs that references stand for."""

    def __init__(self, cfg: SuiteConfig, folder: Path) -> None:
        self.cfg, self.folder, self.rows = cfg, folder, rows_of(cfg, folder)
        self.seeds = cfg.seeds if cfg.pretrain_seeds == "each" else cfg.seeds[:1]  # of the pretrainings
        if both := sorted(set(cfg.prepare) & set(self.rows)):
            raise ValueError(
                f"{both[0]!r} is both a preparation and a row, so a reference to it is ambiguous: rename one"
            )

    def nodes(self) -> Iterator[Node]:
        """Yield the runs."""
        first = self.cfg.seeds[0]
        for name, step in self.cfg.prepare.items():
            role: Role = "tokenizer" if step.kind == "dvae" else "basis"
            extra = {"seed": first} if step.kind == "dvae" else {}
            where = f"preparation {name!r}"
            yield self._node(f"{slug(name)}/prepare", role, name, step.kind, step, step.set, extra, first, where)
        for row, source in self.rows.items():
            for seed in self.seeds if source.config else ():
                name, title, where = self.pretraining(row, seed), source.row or row, f"row {row!r}"
                extra = {"seed": seed}
                yield self._node(name, "pretrain", title, "pretrain", source, source.set, extra, seed, where)
        for title, transfer in self.cfg.transfer.items():
            for row in transfer.rows or self.rows:
                if row not in self.rows:
                    raise ValueError(f"transfer {title!r}: the suite has no row {row!r}; {nearest(row, self.rows)}")
                yield from self._transfers(title, transfer, row, self.rows[row])

    def _transfers(self, title: str, transfer: SuiteTransfer, row: str, source: SuiteRow) -> Iterator[Node]:
        """Yield the runs of one transfer of one row: those of its search, then one per seed."""
        where, base, search = f"transfer {title!r} of row {row!r}", f"{slug(row)}/{slug(title)}", transfer.sweep
        seeds, points = transfer.seeds or self.cfg.seeds, list[str]()
        given = {**transfer.set, **source.fresh, **source.fresh_in.get(title, {})}
        start = {"backbone.reference": source.backbone or f"@{row}"} if source.config or source.backbone else {}

        def node(name: str, seed: int, role: Role, extra: Overrides) -> Node:
            extra, title = {**start, **extra, "seed": seed}, source.row or row
            return self._node(name, role, title, transfer.tool, transfer, given, extra, seed, where)

        for number, values in enumerate(itertools.product(*search.grid.values()) if search else ()):
            assert search is not None
            point = dict(zip(search.grid, values, strict=True))
            points.append(f"{base}/point{number}")
            hours = transfer.hours if search.hours is None else search.hours
            tried = node(points[-1], seeds[0], "point", {**search.set, **point})
            yield tried._replace(point=tuple(point.items()), sweep=search, hours=hours)
        for seed in seeds:
            yield node(f"{base}/seed{seed}", seed, "transfer", {})._replace(points=tuple(points), sweep=search)

    def _node(
        self,
        name: str,
        role: Role,
        row: str,
        kind: str,
        step: Preparation | SuiteRow | SuiteTransfer,
        changes: Overrides,
        extra: Overrides,
        seed: int,
        where: str,
    ) -> Node:
        """Return a run: its changes, its image folder and what comes after both, with the references resolved."""
        root = {}
        if step.data is not None:
            if step.data not in self.cfg.roots:
                raise ValueError(
                    f"{where}: data = {step.data!r} is not in `roots`; {nearest(step.data, self.cfg.roots)}"
                )
            root = {"data.root": self.cfg.roots[step.data]}
        needs: dict[str, None] = {}

        def link(reference: str) -> str:
            node = self.node_of(reference, seed, where=where)
            needs[node] = None
            return "@" + node

        changes = replaced({**changes, **root, **extra}, link)
        config = Path(os.path.normpath(self.folder / str(step.config)))
        cost = (step, step.hours, step.device or self.cfg.device, step.gib)
        return Node(name, role, row, kind, config, changes, seed, tuple(needs), (), None, (), *cost)

    def pretraining(self, row: str, seed: int) -> str:
        """Return the name of the pretraining of a row for the transfers with a seed."""
        return f"{slug(row)}/pretrain/seed{seed if seed in self.seeds else self.seeds[0]}"

    def node_of(self, reference: str, seed: int, *, where: str) -> str:
        """Return the name of the run whose artifact "@name" stands for."""
        name = reference.removeprefix("@")
        if name in self.cfg.prepare:
            return f"{slug(name)}/prepare"
        pretrained = [row for row, source in self.rows.items() if source.config]
        if name in pretrained:
            return self.pretraining(name, seed)
        raise ValueError(
            f"{where}: {reference!r} names no preparation and no pretrained row; "
            f"{nearest(name, [*self.cfg.prepare, *pretrained])}"
        )


def ordered(nodes: Iterable[Node]) -> Plan:
    """Return the nodes by name in an order in which they can run; ValueError if a cycle or a repeated name is found."""
    plan: Plan = {}
    for node in nodes:
        if node.name in plan:
            raise ValueError(
                f"two runs are named {node.name!r} (rows {plan[node.name].row!r} and {node.row!r}): rename one"
            )
        plan[node.name] = node
    try:
        order = list(
            TopologicalSorter({node.name: (*node.needs, *node.points) for node in plan.values()}).static_order()
        )
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise ValueError(f"runs depend on each other in a cycle, remove one '@' reference: {cycle}") from None
    levels = levels_of(plan, order)
    return {name: node for level in range(len(plan)) for name, node in plan.items() if levels[name] == level}


def by_row(plan: Plan, rows: Sequence[str]) -> Plan:
    """Return the runs of a plan row by row and seed by seed, each after those that it needs.

    If a suite is stopped, few pretrainings still have missing transfers.
    """
    taken: Plan = {}

    def take(name: str) -> None:
        for need in (*plan[name].needs, *plan[name].points):
            take(need)
        taken.setdefault(name, plan[name])

    for row in rows:
        for node in sorted((node for node in plan.values() if node.row == row), key=lambda node: node.seed):
            take(node.name)
    return taken | plan  # preparations that no row needs come last


def levels_of(plan: Plan, order: Iterable[str]) -> dict[str, int]:
    """Return for each run the length of the longest chain of runs that it depends on.

    Args:
        order: names of the runs, each after those that it needs.
    """
    levels: dict[str, int] = {}
    for name in order:
        levels[name] = 1 + max((levels[need] for need in (*plan[name].needs, *plan[name].points)), default=-1)
    return levels


def select(plan: Plan, patterns: Sequence[str]) -> Plan:
    """Return the runs whose name contains one of the patterns, and the runs that they need.

    Raises:
        ValueError: no run's name contains a pattern.
    """
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
    """Return a value in which `swap` has replaced every "@name", at any depth."""
    if isinstance(value, dict):
        return {key: replaced(inner, swap) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(inner, swap) for inner in value)
    return swap(value) if isinstance(value, str) and value.startswith("@") else value


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def assignments(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as the values of --set: "key=value"."""
    return [f"{key}={value!r}" for key, value in changes.items()]
