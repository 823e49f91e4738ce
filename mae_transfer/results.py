"""A Result is one number of a table with its provenance. results.jsonl holds one Result per line.

Every protocol writes Results and the tables read them, so a new benchmark needs no change elsewhere.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mae_transfer import disk
from mae_transfer.locks import locked
from mae_transfer.record import Record, now

if TYPE_CHECKING:
    import torch


class Result(BaseModel):
    """One number. `scale` keeps a mini run from being mistaken for a reproduction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    run: str
    task: str
    protocol: str
    dataset: str
    split: str
    metric: str
    value: float | None  # None if the run failed or was skipped
    unit: str
    higher_is_better: bool
    seed: int
    backbone: str
    pretrain: str
    checkpoint_sha256: str | None = None
    normalization: str | None = None  # mean and standard deviation of a backbone's images, and their origin
    params: int
    flops_per_image: int | None = None
    tokens_per_image: float | None = None
    epochs: float
    steps: int
    images_seen: int
    global_batch: int
    world_size: int
    precision: str
    # arithmetic of float32 on CUDA; None in early files, whose convolutions are tf32 and matrix products ieee
    matmul: Literal["ieee", "tf32"] | None = None
    wall_s: float
    images_per_s: float
    peak_mem_gib: float | None = None
    unreadable: int = 0  # images of the evaluation that could not be read and were left out (data.on_error=skip)
    together: int | None = None  # number of results that the run wrote at once; if the file has fewer, some were lost
    device: str
    engine: str
    scale: Literal["mini", "small", "paper"]
    config_digest: str
    recipe_digest: str | None = None  # of the config without seed and file of weights; all seeds of a number share it
    record: Record | None = None  # how the number came to be; None in lines of an earlier version
    commit: str | None = None  # like `versions`, only in lines of earlier versions; now the record has it
    versions: dict[str, str] = {}
    created_at: str = Field(default_factory=now)
    status: Literal["ok", "failed", "skipped"] = "ok"
    reason: str | None = None

    @property
    def revisions(self) -> tuple[str, ...]:
        """The code revisions that the number was computed with, one per sitting that changed it; empty if unknown."""
        if self.record is not None:
            return tuple(dict.fromkeys(sitting.software.revision for sitting in self.record.sittings))
        return (self.commit,) if self.commit else ()


def append(path: Path, results: Sequence[Result]) -> list[Result]:
    """Add one line per result, either all or none; return the results as written.

    Earlier lines of the same numbers from the same training, or of the same weights, are replaced. A last line that a
    crash left incomplete is removed.

    Raises:
        OSError: names the file, which is unchanged.
    """
    written = [result.model_copy(update={"together": len(results)}) for result in results]
    same = {_number_of(result) for result in written} - {None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(".results.lock")):
        before = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in before if line.endswith(b"\n") and not (same and _number_of(_read(line)) in same)]
        with disk.atomic_write(path) as temporary:
            temporary.write_bytes(b"".join([*kept, *(result.model_dump_json().encode() + b"\n" for result in written)]))
    return written


def _number_of(result: Result | None) -> tuple[object, ...] | None:
    """Return the identity of a number: the training, or the evaluation of these weights. None: a failure."""
    if result is None or result.status != "ok":
        return None
    number = (result.task, result.protocol, result.dataset, result.split, result.metric)
    # the weights of a finished training may be written again, with another digest
    weights = () if result.epochs else (result.backbone, result.pretrain, result.checkpoint_sha256)
    return (result.run, result.config_digest, result.seed, result.steps, result.epochs, *number, *weights)


def _read(line: bytes) -> Result | None:
    try:
        return Result.model_validate_json(line)
    except ValidationError:
        return None


def load(path: Path) -> tuple[list[Result], list[str]]:
    """Return the results of a file, and a sentence with the line number for each line that could not be read."""
    results, defects = _parse(path.read_text(encoding="utf-8", errors="replace"))
    return list(results), [f"{path}, {defect}" for defect in defects]


@lru_cache(maxsize=4096)  # a report reads the files of all runs whenever one has ended
def _parse(text: str) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """Return the results of a file's text, of which neighbours share equal records, and its defects."""
    results: list[Result] = []
    defects = []
    lines = text.removesuffix("\n").split("\n")  # splitlines would also split at U+2028
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            result = Result.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            defects.append(f"line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
            continue
        if results and result.record == results[-1].record:
            result = result.model_copy(update={"record": results[-1].record})
        results.append(result)
    return tuple(results), tuple(defects)


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the type of the device with what its rounding depends on.

    Of a CPU: the processor, the instruction set that torch uses, and the number of threads.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{device.type} ({_processor()}, {instructions}, {threads} thread{'s' if threads > 1 else ''})"


@cache
def _processor() -> str:
    """Return the processor's name as Linux tells it; elsewhere what Python knows, at least its architecture."""
    with suppress(OSError):
        if named := re.search(r"^model name\s*: *(\S.*?)\s*$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE):
            return named[1]
    return platform.processor() or platform.machine()
