"""Starts the real server and the real gateway as processes on free loopback ports, and stops them."""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol, TypeVar

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "common", "console", "dicom", "gateway", "storage")  # behind the five doors
START_TIMEOUT_S = 120.0
T = TypeVar("T")


class Child(Protocol):
    """What is used of `subprocess.Popen`."""

    pid: int
    returncode: int | Any
    stdout: IO[str] | None
    stderr: IO[str] | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


started_cold: Callable[..., Child] = partial(subprocess.Popen, stdout=subprocess.PIPE, text=True, errors="replace")
started = started_cold
"""Starts a command whose output is read as text; where speed is not measured, `warm.popen` is cheaper."""


class ProcessFailed(Exception):
    """A process ended or did not say what was awaited; the text ends with its last lines of output."""


class Process:
    """A child process whose output lines can be waited for."""

    def __init__(
        self, name: str, command: list[str], cwd: Path, pass_fds: Sequence[int] = (), /, **environment: str
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self._unread: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.popen = started(
            command, cwd=cwd, env=without_settings() | environment, stderr=subprocess.STDOUT, pass_fds=pass_fds
        )
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"read {name}")
        self._reader.start()

    def wait_for(self, find: Callable[[str], T | None], timeout_s: float = START_TIMEOUT_S) -> T:
        """The first result of `find` over the output lines not yet waited for that is not None."""
        while True:
            try:
                line = self._unread.get(timeout=timeout_s)
            except queue.Empty:
                raise self._failed(f"said nothing awaited for {timeout_s:g} s") from None
            if line is None:
                raise self._failed(f"ended with exit code {self.popen.wait()}")
            if (found := find(line)) is not None:
                return found

    def wait_for_event(self, event: str, timeout_s: float = START_TIMEOUT_S, **fields: Any) -> dict[str, Any]:
        """The next log event of that name with those fields."""

        def find(line: str) -> dict[str, Any] | None:
            entry = as_event(line)
            return entry if entry.get("event") == event and fields.items() <= entry.items() else None

        return self.wait_for(find, timeout_s)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Every log event of that name so far."""
        return [entry for line in list(self.lines) if (entry := as_event(line)).get("event") == event]

    def look(self) -> None:
        """Raise ProcessFailed if it has ended."""
        if (code := self.popen.poll()) is not None:
            raise self._failed(f"ended with exit code {code}")

    def ended(self) -> None:
        """Wait until it has ended. Raises ProcessFailed if its exit code is not 0."""
        try:
            code = self.popen.wait()
        except BaseException:  # a test's time-out, too
            self.kill()
            raise
        self._reader.join()
        if code:
            raise self._failed(f"ended with exit code {code}")

    def stop(self, timeout_s: float = 120.0) -> int:
        """SIGTERM, then the exit code; SIGKILL where it does not end in time."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failed(f"did not end within {timeout_s:g} s of SIGTERM") from None
        self._reader.join()
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL: what `kill -9` does. The system goes on, so what was written is not lost with the process."""
        self.popen.kill()
        self.popen.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.popen.stdout is not None  # noqa: S101 - stdout is a pipe
        with self.popen.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())
                self._unread.put(line.rstrip())
        self._unread.put(None)

    def _failed(self, problem: str) -> ProcessFailed:
        return ProcessFailed(f"{self.name} {problem}\n" + "\n".join(self.lines[-20:]))


def without_settings() -> dict[str, str]:
    """This process's environment without what our processes read as settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "SERVER_", "DATABASE_URL", "OTEL_"))}


def copy_to_break(root: Path, name: str, good: str, broken: str) -> Path:
    """A copy of this project in which one line of one file is another."""
    for folder in (*ROOMS, "web"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):  # whose version it tells
        shutil.copy(path, root)
    source = (root / name).read_text()
    if source.count(good) != 1:
        raise RuntimeError(f"{name} has changed: `{good}` has to stand there once")
    (root / name).write_text(source.replace(good, broken))
    return root


def as_event(line: str) -> dict[str, Any]:
    """A JSON log line as a dict; empty for any other line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


@contextmanager
def running(process: Process) -> Iterator[Process]:
    """Stop the process on the way out, whatever happened."""
    try:
        yield process
    finally:
        process.stop()


def start_server(
    folder: Path, port: int = 0, root: Path = ROOT, host: str = "127.0.0.1", /, **environment: str
) -> tuple[Process, str]:
    """`uvicorn server:app` on a SQLite file in `folder`: the process and its URL, once it answers."""
    environment = {"DATABASE_URL": f"sqlite+aiosqlite:///{folder}/series.db"} | environment
    process = server_process(folder, port, root, host, **environment)
    return process, process.wait_for(_uvicorn_url)


def server_process(folder: Path, port: int, root: Path, host: str, /, **environment: str) -> Process:
    """The same, not waited for."""
    where = ["--host", host, "--port", str(port)]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(root), *where, "server:app"]
    return Process("server", command, folder, **environment)


def start_gateway(
    folder: Path,
    server_url: str,
    port: int = 0,
    root: Path = ROOT,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Process, int]:
    """`python client.py` with its journal in `folder`: the process and its DICOM port, once it listens."""
    command = [sys.executable, str(root / "client.py"), "--scp-port", str(port), "--server-url", server_url]
    process = Process("gateway", command, folder, **environment)
    return process, int(process.wait_for_event("gateway.started")["port"])


def make_key(folder: Path, environment: Mapping[str, str], name: str, scope: str) -> Path:
    """A file with a new key, made as an operator makes one."""
    path = folder / f"{name}.key"
    command_line(folder, environment, "server.py", "keys", "create", name, "--scope", scope, "--save", str(path))
    return path


def command_line(folder: Path, environment: Mapping[str, str], program: str, *arguments: str) -> None:
    """Do what an operator types."""
    Process(program, [sys.executable, str(ROOT / program), *arguments], folder, **environment).ended()


@contextmanager
def server(folder: Path, port: int = 0, /, **environment: str) -> Iterator[tuple[Process, str]]:
    """A server, stopped at the end."""
    process, url = start_server(folder, port, **environment)
    with running(process):
        yield process, url


@contextmanager
def gateway(folder: Path, server_url: str, **settings: Any) -> Iterator[tuple[Process, int]]:
    """A gateway, stopped at the end. `settings` are GATEWAY_… names."""
    environment = {f"GATEWAY_{name}".upper(): str(value) for name, value in settings.items()}
    process, port = start_gateway(folder, server_url, environment=environment)
    with running(process):
        yield process, port


def _uvicorn_url(line: str) -> str | None:
    found = re.search(r"Uvicorn running on (http://\S+)", line)
    return found and found[1]
