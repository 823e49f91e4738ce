"""configs/suites/which_backbone.py in small: its transfers on generated images, with the zoo instead of releases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mae_transfer.config import read
from mae_transfer.suite.store import records
from mae_transfer.suite.tables import comparison, sheets

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "data.size": 64,
    "data.train": {"name": "shapes", "size": 64, "length": 60, "seed": 2, "objects": (1, 1)},
    "data.val": {"name": "shapes", "size": 64, "length": 20, "seed": 3, "objects": (1, 1)},
    "precision": "float32",
    "scale": "mini",
    "run.workers": 0,
}
ENCODER = {"size": None, "dim": 64, "depth": 2, "heads": 1, "patch": 8, "image_size": 64}
PROBES: dict[str, Any] = {"epochs": 1.0, "batch": 20, "run.device_batch": 20, "evaluate_epochs": None}


def small_suite(folder: Path) -> Path:
    """Write the suite with three small backbones and a few generated images; one row has too few for k-NN."""
    suite = read(ROOT / "configs/suites/which_backbone.py")
    few = {"knn": {"data.train": {**SMALL["data.train"], "length": 12}}}
    suite |= {"roots": {}, "seeds": (0, 1)}
    suite["rows"] = {
        "normalised": {"backbone": "zoo:shapes64_norm_pixel"},
        "few": {"backbone": "zoo:shapes64_pixel", "fresh_in": few},
        "random": {
            "fresh": {
                "backbone.encoder": {"size": None, "dim": 64, "depth": 2, "heads": 1, "patch": 8, "image_size": 64}
            }
        },
    }
    for name, transfer in suite["transfer"].items():
        transfer["config"] = str(ROOT / "configs" / "classify" / Path(transfer["config"]).name)
        transfer["data"] = None
        transfer["set"] = {**transfer["set"], **SMALL, **(PROBES if name == "probes" else {})}
        if "rows" in transfer:
            transfer["rows"] = tuple(row for row in suite["rows"] if (row == "random") == ("random" in name))
    file = folder / "suite.py"
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in suite.items()))
    return file


@pytest.mark.slow
def test_small_backbones_are_ranked_and_what_failed_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "tools/reproduce.py", str(small_suite(tmp_path)), "--work-dir", str(tmp_path / "d")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    found, defects = records.load([tmp_path / "d"])
    assert not defects
    about = records.about_of(tmp_path / "d")
    (table,) = comparison.build(["frozen"], found, about=about)
    assert [row.name for row in table.rows] == ["normalised", "few", "random"]
    assert [column.partition(", ")[0] for column in table.columns] == [
        "k-NN", "linear", "efficient", "cross", "logreg", "average rank",
    ]  # fmt: skip
    normalised, few, random = (row.cells for row in table.rows)
    runs = [[len(cells[column].runs) for column in table.columns] for cells in (normalised, few, random)]
    assert runs == [[1, 2, 2, 2, 1, 2], [0, 2, 2, 2, 1, 2], [2, 2, 2, 2, 2, 2]]
    (sheet, *_) = sheets.sheets([table])
    assert any("there are not 20 neighbours of 12 training images; lower ks" in note for note in sheet.notes)
    assert any(note.startswith("average rank: over the 4 columns") for note in sheet.notes)
    assert "Frozen features" in (tmp_path / "d" / "report.html").read_text()
