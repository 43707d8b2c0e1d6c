"""A process on a terminal, and what stands on its screen."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.rig.processes import without_settings


class Terminal:
    """What a process writes to its terminal, read as it comes so that no writing waits, and what is typed there."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.written = ""
        self._master = master
        self._news = threading.Condition()
        self._ended = False
        self._wakes, self._wake = os.pipe()
        self._reader = threading.Thread(target=self._read, name="terminal")
        self._reader.start()

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> str:
        """Wait until it has written what the pattern matches, colours and cursor left out."""
        with self._news:
            self._news.wait_for(lambda: self._ended or re.search(pattern, plain(self.written)), timeout_s)
            if not (found := re.search(pattern, plain(self.written))):
                raise AssertionError(f"{pattern!r} was not written:\n{plain(self.written)[-3000:]}")
            return found[0]

    def forget(self) -> None:
        """Look only at what is written from now on."""
        with self._news:
            self.written = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, height: int, width: int) -> None:
        """As a window's edge that is pulled does."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def ended(self) -> int:
        """Wait until it has ended, and all is read that it wrote; its exit code."""
        with self._news:
            assert self._news.wait_for(lambda: self._ended, 120.0), plain(self.written)[-3000:]
        return self.process.wait(120)

    def close(self) -> None:
        """Hang up: what still runs there gets SIGHUP."""
        os.write(self._wake, b"x")
        self._reader.join()
        for file in (self._master, self._wake, self._wakes):
            os.close(file)

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            ready, _, _ = select.select([self._master, self._wakes], [], [])
            try:
                data = b"" if self._wakes in ready else os.read(self._master, 65536)
            except OSError:  # the other side is closed
                data = b""
            with self._news:
                self.written += decoder.decode(data)
                self._ended = not data
                self._news.notify_all()
            if not data:
                return


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
    terminal = Terminal(master, process)
    try:
        yield terminal
    finally:
        terminal.close()
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
