"""A mounted disk that forgets what was not synced when its power is cut: forgetful_disk.py behind FUSE."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
CHANGES = ("create", "write", "truncate", "fsync", "fsyncdir", "rename", "unlink")


def missing() -> str | None:
    """Return what it lacks here; None where it can be mounted."""
    if find_spec("mfusepy") is None:
        return "mfusepy is not installed (requirements-dev.txt)"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (Debian: apt-get install fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened (a container needs --device /dev/fuse --cap-add SYS_ADMIN)"
    return None


class ForgetfulMount:
    """The process that holds the disk. Whoever uses its files has to be killed before a cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.struck = threading.Event()
        """Set once an armed disk has frozen by itself."""
        self.struck_at = ""
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        command = [sys.executable, "-m", "bench.rig.forgetful_fuse", str(folder)]
        self._popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True, name="read forgetful disk")
        self._reader.start()
        self._answer()

    def freeze(self) -> None:
        """Let nothing reach the disk any more, as in the moment in which the power goes."""
        self._order(do="freeze")

    def arm(self, operations: Sequence[str] = CHANGES, names: str = "", count: int = 1, *, before: bool) -> None:
        """Freeze by itself before or after the `count`-th such operation on a name that matches; then set `struck`."""
        self.struck.clear()
        self._order(do="arm", operations=list(operations), names=names, count=count, before=before)

    def cut(self, seed: int, habit: str | None = None) -> dict[str, int]:
        """Forget what was not synced, and go on; return how many changes were lost, by path."""
        lost: dict[str, int] = self._order(do="cut", seed=seed, habit=habit)["lost"]
        return lost

    def close(self) -> None:
        assert self._popen.stdin is not None  # noqa: S101 - it is a pipe
        self._popen.stdin.close()
        self._popen.wait(10)
        self._reader.join()

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._popen.stdin is not None  # noqa: S101 - it is a pipe
        self._popen.stdin.write(json.dumps(order) + "\n")
        self._popen.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer = self._answers.get(timeout=TIMEOUT_S)
        if answer is None:
            raise RuntimeError(f"the disk at {self.folder} ended with exit code {self._popen.wait()}")
        return answer

    def _read(self) -> None:
        assert self._popen.stdout is not None  # noqa: S101 - it is a pipe
        with self._popen.stdout as output:
            for line in output:
                answer = json.loads(line)
                if "struck" in answer:
                    self.struck_at = answer["struck"]
                    self.struck.set()
                else:
                    self._answers.put(answer)
        self._answers.put(None)


@contextmanager
def forgetful(folder: Path) -> Iterator[ForgetfulMount]:
    """Mount a new disk at a folder, and unmount it at the end."""
    folder.mkdir(exist_ok=True)
    mount = ForgetfulMount(folder)
    try:
        yield mount
    finally:
        mount.close()
