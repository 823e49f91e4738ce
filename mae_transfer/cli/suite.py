"""Run a suite (tokenizers, pretrainings, their transfers, all seeds), and write tables and a report.

  python tools/reproduce.py configs/suites/mini.py --work-dir runs/mini               (minutes, CPU)
  python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --dry-run     (the plan)
  python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --devices 0,1,2,3,4,5,6,7
  python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --gpus-per-node 8
  python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --launcher slurm \\
      --gpus-per-node 8 --nodes 4 --slurm partition=gpu
  python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --watch       (shows states)

D will hold a folder per run (files of the tool, output.log, node.json with the run's state) and
report.html, which is rewritten after every run. Finished runs are kept: if their config, images or
inputs have changed, they are repeated only with --force or a typed yes. Ctrl-C and SIGTERM save and
stop; the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mae_transfer.cli.parser import Parser, add_config_information, check_work_dir, config_path, count, path
from mae_transfer.disk import at_home, package_folder

if TYPE_CHECKING:
    from mae_transfer.suite.store.archive import RunArchive
    from mae_transfer.suite.store.work import Work

OTHERS = {  # launcher -> options of other launchers
    "local": ("nodes", "slurm", "cluster"),
    "slurm": ("jobs", "devices", "archive"),
    "jobfile": ("jobs", "devices", "archive"),
}


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    what, where, how, information = parser.what, parser.where, parser.how, parser.information
    root = "folder of one of the suite's data sets; may be repeated"
    only = "run only runs with TEXT in their name, and their dependencies"
    force = "repeat runs with TEXT in their name, and the runs that depend on them"
    store = "folder of finished runs that suites share: equal runs are used, not repeated"
    archive = "local: folder of text files with the numbers of finished runs: they are not repeated, new ones are added"
    debug = "run each tool with --debug: a few steps of tiny models, to check the suite"
    launcher = "local (default): this machine; slurm: a cluster; jobfile: write a script per run for any scheduler"
    jobs = "local: runs at a time (default: one per named device, else 1)"
    devices = "local: GPU numbers, of which each run gets its own (default: several runs share the visible GPUs evenly)"
    device = "device of every run (default: as its config says); cpu runs several processes without GPUs"
    gpus = "most processes per run and node (default: 1); a run takes as many as its batch can be split over"
    nodes = "slurm, jobfile: most nodes per run (default: 1)"
    cluster = "slurm, jobfile: the cluster's file (default: cluster.toml in D or in ~/.config/mae_transfer)"
    slurm = "slurm, jobfile: a value of cluster.toml, e.g. partition=gpu, max_hours=12"
    one = "used by scripts of jobs: do this run on this node"
    limit = "used by scripts: time limit of the job"
    watch = "show the state and last output of every run until all have ended"
    what.add_argument("suite", type=config_path, metavar="SUITE", help="suite file, or a name: suites/mini")
    what.add_argument("--root", action="append", default=[], metavar="NAME=PATH", help=root)
    what.add_argument("--only", action="append", default=[], metavar="TEXT", help=only)
    what.add_argument("--force", action="append", default=[], metavar="TEXT", help=force)
    where.add_argument("--work-dir", type=path, metavar="D", help="folder for everything that the suite writes")
    where.add_argument("--store", type=path, metavar="DIR", help=store)
    where.add_argument("--archive", type=path, metavar="DIR", help=archive)
    how.add_argument("--debug", action="store_true", help=debug)
    how.add_argument("--launcher", choices=OTHERS, default="local", help=launcher)
    how.add_argument("--jobs", type=count, metavar="N", help=jobs)
    how.add_argument("--devices", default="", metavar="0,1", help=devices)
    how.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), help=device)
    how.add_argument("--gpus-per-node", type=count, default=1, metavar="N", help=gpus)
    how.add_argument("--nodes", type=count, default=1, metavar="N", help=nodes)
    how.add_argument("--cluster", type=path, metavar="FILE", help=cluster)
    how.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=slurm)
    how.add_argument("--run", metavar="NAME:IDENTITY", help=one)
    how.add_argument("--grace", type=count, default=300, metavar="S", help="used by scripts: seconds to save")
    how.add_argument("--limit", type=count, metavar="MINUTES", help=limit)
    information.add_argument("--dry-run", action="store_true", help="print the plan (runs, cost, state), and exit")
    information.add_argument("--watch", action="store_true", help=watch)
    add_config_information(parser)


def run(args: argparse.Namespace) -> None:
    """Show the plan, or run it; print tables and write the report."""
    check_work_dir(args)
    from mae_transfer.cli.showing import show
    from mae_transfer.suite.graph.plan import open_plan, select
    from mae_transfer.suite.graph.shape import Shape, shapes_of
    from mae_transfer.suite.local import view
    from mae_transfer.suite.local.run import Machine, Runner
    from mae_transfer.suite.report.page import publish, refresh
    from mae_transfer.suite.slurm.cluster import open_cluster
    from mae_transfer.suite.slurm.job import do
    from mae_transfer.suite.slurm.script import write_jobs
    from mae_transfer.suite.slurm.submit import queue_of, submit
    from mae_transfer.suite.store.data import DataSets
    from mae_transfer.suite.store.records import about_of, write_about
    from mae_transfer.suite.store.shared import RunStore
    from mae_transfer.suite.store.steps import forced, unpack
    from mae_transfer.suite.store.work import Work
    from mae_transfer.suite.tables.formats import screen

    given = given_roots(args)
    remembered = DataSets(args.work_dir).roots if args.work_dir else {}
    cfg, plan = open_plan(args.suite, roots=given, remembered=remembered)
    if args.show:
        show(cfg, title=str(args.suite))
        return
    console, store = screen(), RunStore(args.store) if args.store else None
    for name in sorted((remembered.keys() & cfg.roots.keys()) - given.keys()):
        console.print(f"{name} = {cfg.roots[name]}, as given before; --root {name}=PATH replaces it", highlight=False)
    chosen = select(plan, args.only)
    work = Work(
        chosen,
        args.work_dir,
        suite=cfg.title,
        debug=args.debug,
        store=store,
        archive=open_archive(args.archive, cfg.title),
        repeated=forced(chosen, args.force),
        device=args.device,
    )
    asked = Shape(args.nodes, args.gpus_per_node)
    if args.run:
        sys.exit(do(cfg, work, args.run, asked, force=args.force, grace=args.grace, limit=args.limit))
    if args.watch:
        view.watch(work, console, queue=queue_of(work.root))
        return
    cuda = args.device in (None, "auto", "cuda")
    machine = Machine.parse(jobs=args.jobs, devices=args.devices, processes=args.gpus_per_node, cuda=cuda)
    shapes, misfits = shapes_of(work.plan, asked, debug=args.debug)
    cluster = open_cluster(args.cluster, args.work_dir, pairs=args.slurm)
    machine.check()
    absent = work.absent()
    if args.dry_run:
        jobs = machine.jobs if args.launcher == "local" else None
        view.show_plan(work, console, shapes, misfits=misfits, forced=forced(work.plan, args.force), jobs=jobs)
    elif misfits:
        raise ValueError("nothing was started: " + "; ".join(misfits))
    if args.dry_run or args.launcher != "local":  # files may be visible on the nodes of the cluster only
        for defect in absent:
            console.print(f"not found on this machine: {defect}", markup=False, highlight=False, soft_wrap=True)
    elif absent:
        raise ValueError("nothing was started: " + "; ".join(absent))
    if args.dry_run:
        return
    replace = agreed_to_replace(work, forced(work.plan, args.force))
    write_about(work.root, cfg.about())
    if work.archive:
        identities = about_of(work.archive.root).identities | work.archived_identities()
        write_about(work.archive.root, cfg.about().model_copy(update={"identities": identities}))
    unpack(work, replace=replace)
    work.data.remember(given)
    work.prefetch(console.print)
    if args.launcher == "slurm":
        submit(work, cluster, shapes, job_command(args), force=args.force, replace=replace, say=console.print)
        console.print(
            "Each job updates report.html. --watch shows the states; the same command submits what is missing."
        )
        publish(cfg, work, console, known=plan)
    elif args.launcher == "jobfile":
        listed = write_jobs(work, shapes, cluster, job_command(args), force=args.force, replace=replace)
        console.print(f"Scripts: {listed} lists them with their needs.")
    else:
        with view.View(work, console) as shown:
            runner = Runner(
                work,
                machine,
                say=shown.say,
                shapes=shapes,
                force=args.force,
                replace=replace,
                refresh=lambda: refresh(cfg, work),
            )
            states = runner.run(poll=lambda: shown.draw(runner))
        end(states.values(), publish(cfg, work, console, known=plan))


def given_roots(args: argparse.Namespace) -> dict[str, str]:
    """Return the folders of --root by name. ValueError if one is not NAME=PATH, or options do not go together."""
    if idle := [name for name in OTHERS[args.launcher] if getattr(args, name) not in (None, "", [], 1)]:
        raise ValueError(f"--{idle[0]} has no effect with --launcher {args.launcher}: remove it")
    if args.debug and args.archive:
        raise ValueError("--archive takes no trial runs: remove --debug or --archive")
    pairs = [text.partition("=") for text in args.root]
    if not all(path for _, _, path in pairs):
        raise ValueError(f"--root {args.root}: write name=path, for instance --root imagenet=/data/imagenet")
    return {name: str(Path(at_home(path)).absolute()) for name, _, path in pairs}


def open_archive(folder: Path | None, suite: str) -> RunArchive | None:
    """Open the archive of a suite, and say whether it is new and how many of its runs are of another commit."""
    if folder is None:
        return None
    from mae_transfer.suite.store.archive import RunArchive

    archive = RunArchive(folder, suite)
    if not archive.runs:
        print(f"--archive {folder} is new: it has no runs yet")
    if others := archive.of_other_code():
        print(f"{len(others)} archived runs are of other commits than this; --force NAME repeats and replaces them")
    return archive


def end(states: Collection[str], wrong: Sequence[str]) -> None:
    """Exit with an error if a run is missing or an expectation does not hold."""
    from mae_transfer.suite.local import view

    if set(states) - {"done"}:
        sys.exit(f"{view.summary(states)}; run the same command again for the missing runs")
    if wrong:
        sys.exit("not as expected: " + "; ".join(wrong))


def job_command(args: argparse.Namespace) -> list[str]:
    """Return the command of a job, without the run that it does."""
    script = str((package_folder("tools") / "reproduce.py").resolve())
    shape = ["--nodes", str(args.nodes), "--gpus-per-node", str(args.gpus_per_node)]
    texts = [f"--{name}={text}" for name in ("root", "force") for text in getattr(args, name)]
    where = [str(args.suite.resolve()), "--work-dir", str(args.work_dir.resolve())]
    options = [*(["--debug"] if args.debug else []), *(["--store", str(args.store.resolve())] if args.store else [])]
    options += ["--device", args.device] if args.device else []
    return [script, *where, *texts, *options, "--launcher", args.launcher, *shape]


def agreed_to_replace(work: Work, force: frozenset[str]) -> bool:
    """Ask whether finished runs that have changed may be set aside and repeated; return whether there are any.

    Raises:
        ValueError: there are, but the user does not agree, or there is no terminal.
    """
    from mae_transfer.suite.store.steps import keep_finished, replaced_runs

    changed = replaced_runs(work, force)
    if changed and sys.stdin.isatty() and sys.stdout.isatty():
        print(f"{len(changed)} finished runs are not those of the suite any more:")
        print("".join(f"  {name}: {why}\n" for name, why in changed.items()))
        text = "Type yes to set them aside (in .replaced; archived numbers are replaced) and repeat them: "
        if input(text).strip() == "yes":
            return True
    keep_finished(work, force)
    return False
