"""Checkpoints after a full disk, truncation, bit errors, a hostile pickle or a partial write; and which are kept."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mae_transfer import disk
from mae_transfer.disk import atomic_write, write_text
from mae_transfer.engine import checkpoint

PAYLOAD = {"model": {"w": torch.arange(1000.0)}, "step": 3, "extra": {"name": "x", "list": [1, 2.5, None, (True,)]}}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def name(step: int) -> str:
    return f"step_{step:08d}.pt"


class Bomb:
    """Unpickling it runs a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "new", 12345, PAYLOAD)
    loaded = checkpoint.load_newest(tmp_path / "new")
    assert path == loaded.path == tmp_path / "new" / "step_00012345.pt"
    assert loaded.notices == []
    assert torch.equal(loaded.payload["model"]["w"], PAYLOAD["model"]["w"])
    assert loaded.payload["extra"] == PAYLOAD["extra"]


def test_an_empty_or_absent_folder_holds_nothing(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "absent") is None
    assert checkpoint.newest(tmp_path / "absent") is None


def test_the_last_ones_and_every_nth_are_kept(tmp_path: Path) -> None:
    for step in range(10, 101, 10):
        checkpoint.save(tmp_path, step, PAYLOAD, keep_last=2, keep_every=40)
    assert steps(tmp_path) == [name(40), name(80), name(90), name(100)]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "no zip"])
def test_an_unreadable_newest_file_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 5, PAYLOAD)
    path = checkpoint.save(tmp_path, 10, PAYLOAD)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(
        {"truncated": bytes(data[:3000]), "one bit": bytes(data), "empty": b"", "no zip": b"hello" * 100}[damage]
    )
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded.path.name == name(5)
    assert len(loaded.notices) == 1
    assert "checkpoint of step 10 cannot be read" in loaded.notices[0]
    assert str(path) in loaded.notices[0]


def test_a_good_file_is_not_pruned_in_favour_of_a_newer_unreadable_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, PAYLOAD, keep_last=1)
    (tmp_path / name(10)).write_bytes(b"rubbish")
    checkpoint.save(tmp_path, 7, PAYLOAD, keep_last=1)
    assert checkpoint.load_newest(tmp_path).path.name == name(7)


def test_where_no_file_can_be_read_the_error_names_them_all(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / name(step)).write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"(?s)no readable checkpoint.*step 2.*step 1"):
        checkpoint.load_newest(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_not_run(tmp_path: Path, legacy: bool) -> None:
    witness = tmp_path / "was_run"
    checkpoint.save(tmp_path / "c", 1, PAYLOAD)
    path = tmp_path / "c" / name(2)
    torch.save({"model": Bomb(witness)}, path) if not legacy else path.write_bytes(pickle.dumps(Bomb(witness)))
    loaded = checkpoint.load_newest(tmp_path / "c")
    assert loaded.path.name == name(1)
    assert len(loaded.notices) == 1
    assert not witness.exists()
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists(), "the bomb itself is a dud"


def test_a_full_disk_leaves_the_older_checkpoint_and_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, PAYLOAD, keep_last=1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"step_00000002\.pt was not written .*No space left on device.*free some space"
    ) as caught:
        checkpoint.save(tmp_path, 2, PAYLOAD, keep_last=1)
    assert caught.value.errno == errno.ENOSPC
    assert steps(tmp_path) == [name(1)]


def test_a_writer_writes_what_the_state_was_and_keeps_the_previous_one_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, proceed = disk._synced, threading.Event()
    weight, history = torch.zeros(3), [1]
    with checkpoint.Writer(tmp_path / "new", keep_last=1) as writer:
        writer.save(1, PAYLOAD)
        writer.wait()
        monkeypatch.setattr(disk, "_synced", lambda path: (proceed.wait(600), synced(path)))
        writer.save(2, {"model": {"w": weight}, "extra": {"list": history}, "step": 2})
        weight += 1
        history.append(2)
        writer.check()  # does not wait
        assert name(2) not in steps(tmp_path / "new")
        proceed.set()
    assert steps(tmp_path / "new") == [name(2)]
    loaded = checkpoint.load_newest(tmp_path / "new").payload
    assert (loaded["model"]["w"].tolist(), loaded["extra"]["list"]) == ([0.0, 0.0, 0.0], [1])


def fails_to_write(folder: Path, *, raising: type[Exception] | None = None) -> None:
    with checkpoint.Writer(folder) as writer:
        writer.save(1, PAYLOAD)
        if raising is not None:
            raise raising


def test_a_writer_raises_the_error_of_a_write_once_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "states"
    with pytest.raises(OSError, match="was not written"):
        fails_to_write(folder)
    with pytest.raises(ZeroDivisionError) as caught:
        fails_to_write(folder, raising=ZeroDivisionError)
    assert "step_00000001.pt was not written" in caught.value.__notes__[0]
    monkeypatch.setattr(checkpoint, "_put", lambda path, payload: {}["no such key"])
    with pytest.raises(ZeroDivisionError) as caught:
        fails_to_write(tmp_path, raising=ZeroDivisionError)
    monkeypatch.undo()
    assert caught.value.__notes__ == ["KeyError: 'no such key'"]
    with checkpoint.Writer(folder) as writer:
        writer.save(1, PAYLOAD)
        with pytest.raises(OSError, match="was not written"):
            writer.wait()
        writer.check()


def test_a_disk_that_fills_up_within_the_file_is_the_same_one_error(tmp_path: Path) -> None:
    """The system's limit on file sizes acts like a full disk: the write fails inside torch's zip writer."""
    script = """
        import resource, signal, sys, torch
        from pathlib import Path
        from mae_transfer.engine import checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        checkpoint.save(Path(sys.argv[1]), 1, {"w": torch.zeros(10)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save(Path(sys.argv[1]), 2, {"w": torch.zeros(1_000_000)})
        except OSError as error:
            print("caught", error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert "caught" in run.stdout
    assert "was not written" in run.stdout
    assert steps(tmp_path) == [name(1)]


def test_a_half_written_file_is_ignored_and_removed_by_the_next_run(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, PAYLOAD)
    for left in (f".{name(2)}.tmp", f".{name(3)}.12-34.tmp", ".best.pt.12-34.tmp", ".best.pt.tmp"):
        (tmp_path / left).write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path).path.name == name(1)
    checkpoint.save(tmp_path, 2, PAYLOAD)
    assert steps(tmp_path) == [".best.pt.12-34.tmp", ".best.pt.tmp", name(1), name(2)]  # the thread that saves the best
    checkpoint.save_best(tmp_path, PAYLOAD)
    assert steps(tmp_path) == ["best.pt", name(1), name(2)]


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, other = tmp_path / "note.json", ThreadPoolExecutor(1)
    with atomic_write(path) as temporary:
        temporary.write_text("ours")
        other.submit(write_text, path, "theirs").result()
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_older_files_are_pruned_only_after_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, PAYLOAD, keep_last=1)
    present: list[list[str]] = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path,
        "unlink",
        lambda path, missing_ok=False: (present.append(steps(path.parent)), unlink(path, missing_ok=missing_ok))[1],
    )
    checkpoint.save(tmp_path, 2, PAYLOAD, keep_last=1)
    assert present == [[name(1), name(2)]]
