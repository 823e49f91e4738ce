"""Run a suite: tokenizers, pretrainings, every transfer of each, from every seed; then its tables and report.html.

    python tools/reproduce.py configs/suites/mini.py --work-dir runs/mini                                    minutes, on a CPU
    python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --root imagenet=/data/imagenet --dry-run     the plan: runs, cost, state
    python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --devices 0,1,2,3,4,5,6,7                    eight runs at a time
    python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --gpus-per-node 8                            each run on eight GPUs
    python tools/reproduce.py configs/suites/table7.py --work-dir runs/t7 --launcher slurm --gpus-per-node 8 --nodes 4 --slurm partition=gpu

The work dir holds a folder per run (the tool's own files, output.log, node.json) and report.html. What is done is not done again; a run whose config,
inputs or seed changed is, and says why. Ctrl-C and SIGTERM save and stop; the same command continues.
"""

import argparse
import sys

from mae_transfer import cli
from mae_transfer.suite import view
from mae_transfer.suite.formats import screen
from mae_transfer.suite.plan import open_plan, select
from mae_transfer.suite.report import publish
from mae_transfer.suite.run import Machine, Runner
from mae_transfer.suite.slurm import Cluster, submit
from mae_transfer.suite.steps import forced
from mae_transfer.suite.work import Work

OTHERS = {"local": ("nodes", "slurm"), "slurm": ("jobs", "devices")}  # options that the other launcher takes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=cli.path, metavar="SUITE", help="a file under configs/suites, or your own; its docstring says what it costs")
    parser.add_argument("--work-dir", type=cli.path, required=True, metavar="D", help="where everything goes")
    parser.add_argument("--root", action="append", default=[], metavar="NAME=PATH", help="where a data set of the suite lies; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="only runs with this in their name, and what they need")
    parser.add_argument("--force", action="append", default=[], metavar="TEXT", help="repeat runs with this in their name and what takes from them")
    parser.add_argument("--debug", action="store_true", help="every run as its tool's --debug: a few steps of tiny models, to try the suite itself")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="this machine (default), or SLURM through submitit")
    parser.add_argument("--jobs", type=cli.count, help="local: runs at a time (default: one per named device, else 1)")
    parser.add_argument("--devices", default="", metavar="0,1", help="local: GPUs by number; each run gets one of them (default: all see all)")
    parser.add_argument("--gpus-per-node", type=cli.count, default=1, help="processes of each run on a node, under torchrun where more than one")
    parser.add_argument("--nodes", type=cli.count, default=1, help="slurm: nodes of each run")
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help="slurm: a parameter, e.g. partition=gpu, timeout_min=720")
    return parser.parse_args()


def main() -> int:
    args = parse()
    return cli.guarded(lambda: reproduce(args))


def reproduce(args: argparse.Namespace) -> None:
    if idle := [name for name in OTHERS[args.launcher] if getattr(args, name) not in (None, "", [], 1)]:
        raise ValueError(f"--{idle[0]} does nothing with --launcher {args.launcher}: leave it out")
    pairs = [text.partition("=") for text in args.root]
    if not all(path for _, _, path in pairs):
        raise ValueError(f"--root {args.root}: write name=path, for instance --root imagenet=/data/imagenet")
    cfg, plan = open_plan(args.suite, roots={name: cli.at_home(path) for name, _, path in pairs})
    console, work = screen(), Work(select(plan, args.only), args.work_dir, suite=cfg.title, debug=args.debug)
    devices = tuple(filter(None, args.devices.split(",")))
    machine = Machine(args.jobs if args.jobs is not None else len(devices) or 1, devices, args.gpus_per_node)
    cluster = Cluster.parse(nodes=args.nodes, gpus_per_node=args.gpus_per_node, options=args.slurm)
    machine.check()
    absent = work.absent()
    if args.dry_run:
        view.show_plan(work, console, forced(work.plan, args.force))
    if args.dry_run or args.launcher == "slurm":  # a cluster's nodes may see what this one does not
        for defect in absent:
            console.print(f"not seen from here: {defect}", markup=False, highlight=False, soft_wrap=True)
    elif absent:
        raise ValueError("nothing was started: " + "; ".join(absent))
    if args.dry_run:
        return
    if args.launcher == "slurm":
        if submit(work, cluster, force=args.force, say=console.print):
            console.print("When they have ended, the same command submits what is missing and writes tables and report.html.")
        else:
            publish(cfg, work, console, known=plan)
    else:
        with view.View(work, console) as shown:
            runner = Runner(work, machine, say=shown.say, force=args.force)
            states = runner.run(poll=lambda: shown.draw(runner))
        publish(cfg, work, console, known=plan)
        if set(states.values()) - {"done"}:
            sys.exit(f"{view.summary(states.values())}; the same command continues with what is missing")


if __name__ == "__main__":
    sys.exit(main())
