"""A Python interpreter for tests whose programs start at once: they are forked from a server that has imported torch.

`interpreter(FOLDER)` starts the server and yields the path of the interpreter. A program of it has the environment, the
folder, the output and the ignored signals of its caller, and the clock of its node (SIMULATED_SKEW, in seconds). It
gets the signals that the caller's process gets, and it is killed when that process is.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


@contextmanager
def interpreter(folder: Path, *modules: str) -> Iterator[Path]:
    """Start a server that has imported some modules; yield the interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    short = tempfile.TemporaryDirectory(dir="/tmp")  # the path of a socket has at most 108 bytes
    address, program = Path(short.name) / "socket", folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "{__file__}" client "{address}" "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, __file__, "server", str(address), str(program), *modules]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with short, subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield program
        finally:
            server.terminate()


def client(address: str, words: list[str]) -> int:
    """Have a program run; return its exit status."""
    ignored = [int(number) for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    request = {"words": words, "environment": dict(os.environ), "folder": str(Path.cwd()), "ignored": ignored}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        fds = array.array("i", (0, 1, 2))
        server.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        server.sendall(json.dumps(request).encode() + b"\n")
        for number in PASSED_ON:
            if number not in ignored:
                signal.signal(number, lambda number, _: server.send(bytes([number])))
        answer = b""
        while not answer.endswith(b"\n"):
            part = server.recv(64)
            if not part:
                return 1  # the server has ended
            answer += part
    code = int(answer)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(address: str, program: str, modules: list[str]) -> None:
    """Import the modules, then fork a process for each request."""
    for module in modules:
        __import__(module)
    sys.executable = program  # programs that start programs use this interpreter, too
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            while not select.select([listener], [], [], 1.0)[0]:
                if os.getppid() != parent:  # the tests were killed
                    os._exit(0)
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                attend(caller)
            caller.close()


def attend(caller: socket.socket) -> None:
    """Run one program in a child, pass signals on to it, and answer with its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    fds = array.array("i", (0, 0, 0))
    _, data, _, _ = caller.recvmsg(1, socket.CMSG_SPACE(fds.itemsize * 3))
    if not data:  # the caller was killed
        os._exit(1)
    fds = array.array("i", data[0][2])
    text = b""
    while b"\n" not in text:
        part = caller.recv(1 << 20)
        if not part:  # the caller was killed
            os._exit(1)
        text += part
    request, _, early = text.partition(b"\n")
    child = os.fork()
    if child == 0:
        caller.close()
        execute(json.loads(request), list(fds))
    for number in early:  # signals that came before the program
        os.kill(child, number)
    for fd in fds:
        os.close(fd)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with suppress(OSError):
                caller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        if select.select([caller], [], [], 0.02)[0]:
            numbers = caller.recv(16)
            for number in numbers or [signal.SIGKILL]:  # nothing: the caller was killed
                os.kill(child, number)
            if not numbers:
                os.waitpid(child, 0)
                os._exit(0)


def execute(request: dict[str, Any], fds: list[int]) -> None:
    """Be the program."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if skew := float(os.environ.get("SIMULATED_SKEW", 0)):
        clock = time.time
        time.time = lambda: clock() + skew
    words = [word for word in request["words"] if word != "-u"]
    code: object = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        sys.exit(client(sys.argv[2], sys.argv[3:]))
    serve(sys.argv[2], sys.argv[3], sys.argv[4:])
