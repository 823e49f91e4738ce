"""locks.py: one holder at a time, with flock and without; a dead holder's lock is taken over, a living one's never."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mae_transfer import locks

HOLD = """
import sys, time
from pathlib import Path
from mae_transfer import locks
locks.RENEW_S = 0.1
with locks.locked(Path(sys.argv[1]), owner="the other run"):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from mae_transfer import locks
locks.POLL_S = 0.001
counter = Path(sys.argv[1]).with_name("counter")
for _ in range(40):
    with locks.locked(Path(sys.argv[1])):
        value = int(counter.read_text())
        time.sleep(0.0005)
        counter.write_text(str(value + 1))
"""


@pytest.fixture(params=["flock", "files", "no flock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with flock, one where the user distrusts it, and one whose flock fails."""
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    monkeypatch.setattr(locks, "RENEW_S", 0.1)
    monkeypatch.setattr(locks, "STALE_S", 1.0)
    if request.param == "files":
        monkeypatch.setenv(locks.VARIABLE, "files")
    if request.param == "no flock":

        def refuse(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return str(request.param)


def script(text: str, path: Path, kind: str) -> list[str]:
    broken = "import errno, fcntl\ndef refuse(*_): raise OSError(errno.ENOSYS, 'no')\nfcntl.flock = refuse\n"
    return [sys.executable, "-c", (broken if kind == "no flock" else "") + text, str(path)]


def test_a_second_holder_is_refused_and_told_who_holds_it_and_the_lock_is_free_afterwards(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "run" / ".lock"
    with (
        locks.locked(path, owner="process 7 on node1"),
        pytest.raises(ValueError, match=r"run is in use by process 7 on node1: wait for it to end"),
        locks.locked(path, owner="me"),
    ):
        raise AssertionError("two holders")
    with locks.locked(path, owner="me"):
        pass


def test_without_an_owner_it_waits(kind: str, tmp_path: Path) -> None:
    path, order = tmp_path / ".lock", []

    def second() -> None:
        with locks.locked(path):
            order.append("second")

    with locks.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_processes_never_hold_it_together(kind: str, tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [subprocess.Popen(script(COUNT, tmp_path / ".lock", kind)) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "120"
    assert {file.name for file in tmp_path.iterdir()} <= {".lock", "counter"}


@pytest.mark.parametrize("host", ["this", "another"])
def test_the_lock_of_a_killed_process_is_taken_over_and_that_of_a_living_one_is_not(
    kind: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another host only the missing renewals tell that the holder is dead; its clock does not matter."""
    path = tmp_path / ".lock"
    with subprocess.Popen(script(HOLD, path, kind), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        if host == "another":
            monkeypatch.setattr(socket, "gethostname", lambda: "node2")
        with pytest.raises(ValueError, match="in use by the other run"), locks.locked(path, owner="me"):
            pass
        holder.kill()
    held = path.with_name(".lock.held")
    if held.exists():
        os.utime(held, (2e9, 2e9))  # the dead node's clock was years ahead
    with locks.locked(path, owner="me"):
        pass


def test_a_holder_that_was_suspended_until_its_lock_was_taken_over_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(locks.VARIABLE, "files")
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    monkeypatch.setattr(locks, "RENEW_S", 0.1)
    path = tmp_path / ".lock"
    holder = subprocess.Popen(script(HOLD, path, "files"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    with locks.locked(path, owner="me"):
        holder.send_signal(signal.SIGCONT)
        _, said = holder.communicate(timeout=30)
        assert holder.returncode == -signal.SIGTERM
        assert "was taken over by another process" in said


def test_another_error_of_the_file_system_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), locks.locked(tmp_path / ".lock"):
        pass


def test_a_wait_without_patience_ends_at_once_and_still_notices_a_dead_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite looks at the claims of others twice a second; it must not wait for a renewal each time."""
    monkeypatch.setenv(locks.VARIABLE, "files")
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    held = tmp_path / ".lock.held"
    held.write_text("token\nnode9\n1\nthe other suite")
    refused, end = 0, time.monotonic() + 30
    while time.monotonic() < end:
        try:
            with locks.locked(tmp_path / ".lock", owner="me", patience=0.0):
                break
        except ValueError as error:
            assert "in use by the other suite" in str(error)  # noqa: PT017
            refused += 1
            time.sleep(0.02)
    assert refused > 1
    assert time.monotonic() < end
    assert not held.exists()


def test_a_lock_file_without_content_does_not_block_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer was killed, or the disk was full."""
    monkeypatch.setenv(locks.VARIABLE, "files")
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    (tmp_path / ".lock.held").touch()
    with locks.locked(tmp_path / ".lock"):
        assert (tmp_path / ".lock.held").read_text()


def test_a_process_number_of_another_container_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers may share the name of their machine."""
    monkeypatch.setenv(locks.VARIABLE, "files")
    (tmp_path / ".lock.held").write_text(f"token\n{socket.gethostname()} pid:[1]\n{2**22 - 1}\nthe other container")
    with (
        pytest.raises(ValueError, match="the other container"),
        locks.locked(tmp_path / ".lock", owner="me", patience=0.0),
    ):
        pass


def test_a_process_that_ended_but_was_not_collected_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A former defect: in a container without an init, a killed run held its lock for as long as a living one."""
    monkeypatch.setenv(locks.VARIABLE, "files")
    path = tmp_path / ".lock"
    holder = subprocess.Popen(script(HOLD, path, "files"), stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    assert locks.is_held(path)
    holder.kill()
    time.sleep(0.2)  # it is a zombie: nobody has waited for it
    assert not locks.is_held(path)
    holder.stdout.close()
    holder.wait()
