"""A process on a terminal, and what stands on its screen."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.processes import without_settings


class Terminal:
    """What a process writes to its terminal, and what is typed there."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.written = ""
        self._master = master

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> str:
        """Wait until it has written what the pattern matches, colours and cursor left out."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, plain(self.written))):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{pattern!r} was not written:\n{plain(self.written)[-3000:]}")
        return found[0]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> int:
        """Read what it writes until it has ended; its exit code."""
        while self._read(120.0):
            pass
        return self.process.wait(120)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, timeout_s))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other side is closed
            data = b""
        self.written += data.decode(errors="replace")
        return bool(data)


@contextmanager
def on_a_terminal(
    command: list[str], folder: Path, *, height: int = 30, width: int = 120, **environment: str
) -> Iterator[Terminal]:
    """The process, on a terminal of its own and killed at the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    env = without_settings() | {"TERM": "xterm-256color"} | environment
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], cwd=folder, env=env, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        os.close(master)  # hangs up: what still runs there gets SIGHUP
        process.kill()
        process.wait()


def plain(written: str) -> str:
    """Without what colours and moves."""
    return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07)", "", written).replace("\r", "")


def screen(written: str) -> list[str]:
    """The lines that stand on the screen in the end, of what moves no further than rich does."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
            row -= int(up[1])
        elif not part.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]
