"""Start `python client.py`, `python server.py` and `uvicorn server:app` as forks of a process that has imported all.

Imports are most of the CPU of a short command, 1.0 to 1.7 s; a fork takes a tenth. It is a process of its own, with its
folder, environment, output, signals and exit code. Other than from a shell, stdin is empty; umask, limits and the seed
of hashes are the importer's, and so is the command line that `ps` shows. Other commands, and these with a variable of
Python's, start as usual.
"""

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.rig.processes import ROOMS, ROOT, Child, started_cold

PROGRAMS = ([str(ROOT / "client.py")], [str(ROOT / "server.py")], ["-m", "uvicorn", "--app-dir", str(ROOT)])
IMPORTED_WHEN_NEEDED = (
    "aiosqlite",
    "alembic.command",
    "anyio._backends._asyncio",
    "asyncpg",
    "client",
    "fastapi_offline",
    "httpcore",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
    "uvloop",  # where it can be installed
)
NUMBER = struct.Struct("q")  # of a process, and then its exit code
MAX_ORDER_BYTES = 100_000  # a command with its environment
_ONE_AT_A_TIME = threading.Lock()


def popen(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int = subprocess.STDOUT,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start a command whose output is read as text; `stderr` is STDOUT or PIPE."""
    environment = dict(os.environ if env is None else env)
    ours = any([*command[1 : 1 + len(program)]] == program for program in PROGRAMS)
    if ours and command[0] == sys.executable and not pass_fds and not _of_python(environment, _importer().environment):
        return Fork([*command[1:]], str(cwd or Path.cwd()), environment, stderr == subprocess.PIPE)
    return started_cold(command, cwd=cwd, env=environment, stderr=stderr, pass_fds=pass_fds)


def run(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends, its output captured as text."""
    child = popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE)
    assert child.stdout is not None  # noqa: S101 - both are pipes
    assert child.stderr is not None  # noqa: S101
    with child.stdout, child.stderr, ThreadPoolExecutor(1) as thread:
        try:
            err = thread.submit(child.stderr.read)
            out = child.stdout.read()
            return subprocess.CompletedProcess(command, child.wait(), out, err.result())
        except BaseException:  # a test's time-out, too
            child.kill()
            raise


def _of_python(environment: Mapping[str, str], importers: Mapping[str, str]) -> set[str]:
    """Return the variables that Python reads when it starts and that were others when the importer did."""
    changed = {name for name, _ in environment.items() ^ importers.items()}
    return {name for name in changed if name.startswith(("PYTHON", "LC_", "LANG", "LD_"))}


class Fork:
    """What is used of `subprocess.Popen`, for a child of the process that has imported everything."""

    returncode: int | None

    def __init__(self, words: list[str], cwd: str, environment: dict[str, str], own_stderr: bool) -> None:
        self.pid, self.returncode = 0, None
        self._ending = threading.Lock()
        self._report, report = os.pipe()
        out, to_out = os.pipe()
        err, to_err = os.pipe() if own_stderr else (None, os.dup(to_out))
        order = json.dumps({"words": words, "cwd": cwd, "environment": environment}).encode()
        given = [to_out, to_err, report]
        try:
            socket.send_fds(_importer().orders, [order], given)
        finally:
            for descriptor in given:
                os.close(descriptor)
        self.stdout: IO[str] | None = os.fdopen(out, errors="replace")
        self.stderr: IO[str] | None = None if err is None else os.fdopen(err, errors="replace")
        self.pid = self._number()

    def __del__(self) -> None:
        if self.pid and self.returncode is None:
            warnings.warn(f"process {self.pid} still runs", ResourceWarning, source=self, stacklevel=2)
        os.close(self._report)

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that ended it, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, as `poll` does, once there is one."""
        if self.returncode is None:
            told = select.poll()
            told.register(self._report, select.POLLIN)
            if not told.poll(None if timeout is None else 1000 * timeout) and self.returncode is None:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        with self._ending:
            if self.returncode is None:
                self.returncode = self._number()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, if it still runs."""
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        read = os.read(self._report, NUMBER.size)
        if not read:
            raise RuntimeError("the process that imports the programs has ended; its traceback is on stderr")
        found: int = NUMBER.unpack(read)[0]
        return found


class Importer(NamedTuple):
    """Where it takes orders, and the variables that it started with."""

    orders: socket.socket
    environment: dict[str, str]


def _importer() -> Importer:
    with _ONE_AT_A_TIME:
        return _started_importer()


@cache
def _started_importer() -> Importer:
    """Start this process's importer, which ends when this process does."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "bench.rig.warm", str(its.fileno())]
        nowhere = subprocess.DEVNULL
        importer = subprocess.Popen(command, cwd=ROOT, stdin=nowhere, stdout=nowhere, pass_fds=[its.fileno()])
    atexit.register(importer.wait)
    atexit.register(ours.close)  # first
    return Importer(ours, dict(os.environ))


# --- the importer: a command is a fork of a fork, which waits for it and tells its number and its exit code ---------


def _import_all() -> None:
    for room in ROOMS:
        for module in pkgutil.walk_packages([str(ROOT / room)], f"{room}."):
            import_module(module.name)
    for name in filter(find_spec, IMPORTED_WHEN_NEEDED):
        import_module(name)
    gc.collect()
    gc.freeze()  # else the garbage collector of each fork writes to all of it


def _forked(orders: socket.socket) -> tuple[dict[str, Any], int, int]:
    """Fork for each order until there are no more. Returns in the forks: an order, and where output and errors go."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who waits
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, MAX_ORDER_BYTES, 3)
        if not order:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    orders.close()
    out, err, report = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if number := os.fork():
        os.close(out)
        os.close(err)
        try:
            _tell(number, report)
        finally:
            os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(report)
    return json.loads(order), out, err


def _tell(number: int, report: int) -> None:
    """Tell a process's number and its exit code. It is there until that is told, so that nobody has its number."""
    try:
        os.write(report, NUMBER.pack(number))
    except BrokenPipeError:  # who ordered it has ended
        os.kill(number, signal.SIGKILL)
    ended = os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    assert ended is not None  # noqa: S101 - it is None only where nobody waits
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    os.write(report, NUMBER.pack(code))
    os.waitpid(number, 0)


def _run(order: dict[str, Any], out: int, err: int) -> None:
    """Be the command of an order."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    module = order["words"][0] == "-m"
    program, *arguments = order["words"][module:]
    sys.argv = [program, *arguments]
    sys.path[0] = order["cwd"] if module else str(ROOT)
    if module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        forked = _forked(listening)
    _run(*forked)
