"""Mount a disk that forgets (forgetful_disk.py) at a folder; run by forgetful_mount.py as a process of its own.

Orders come as lines of JSON on standard input, answers go to standard output; the end of the input unmounts.

- `{"do": "freeze"}`: from now on nothing changes the disk, and nothing is synced: both end in EIO.
- `{"do": "arm", "operations": […], "names": regex, "count": n, "before": bool}`: freeze by itself before or after the
  n-th such operation on a file whose name matches, and tell `{"struck": …}`.
- `{"do": "cut", "seed": s, "habit": h}`: unmount, forget, mount again; tell `{"lost": …}`.
"""

import errno
import json
import os
import random
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mfusepy

from bench.rig.forgetful_disk import Disk, File, Folder, Node

UNMOUNT = ("fusermount3", "-u", "-q")
UNMOUNT_TIMEOUT_S = 30.0  # a process that was killed may still hold the folder for a moment
BLOCKS = 2**24  # of 4 KiB: what the disk says it has


class Operations:
    """FUSE's operations on a disk. One thread runs them, orders come from another; `guard` is held by each."""

    use_ns = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.guard = threading.Lock()
        self.frozen = False
        self.armed: dict[str, Any] | None = None
        self._open: dict[int, tuple[Node, str]] = {}
        self._handles = iter(range(1, 2**62))

    @contextmanager
    def _changing(self, operation: str, name: str) -> Iterator[None]:
        """Let one change happen, unless the power is gone; or let it go, before or after this one."""
        with self.guard:
            strikes = self._strikes(operation, name)
            if strikes and strikes["before"]:
                self._strike(operation, name)
            if self.frozen:
                raise OSError(errno.EIO, "the power is gone")
            yield
            if strikes:
                self._strike(operation, name)

    def _strikes(self, operation: str, name: str) -> dict[str, Any] | None:
        armed = self.armed
        if self.frozen or not armed or operation not in armed["operations"] or not re.search(armed["names"], name):
            return None
        armed["count"] -= 1
        return armed if armed["count"] <= 0 else None

    def _strike(self, operation: str, name: str) -> None:
        self.frozen, self.armed = True, None
        tell(struck=f"{operation} {name}")

    def _handle(self, node: Node, path: str) -> int:
        handle = next(self._handles)
        self._open[handle] = node, path
        return handle

    def _node(self, path: str | None, fh: int | None) -> Node:
        """Return what an open file or folder is, whatever its name is by now."""
        return self._open[fh][0] if fh in self._open else self.disk.find(path or "")

    def _file(self, path: str | None, fh: int | None) -> File:
        node = self._node(path, fh)
        assert isinstance(node, File)  # noqa: S101 - the kernel asks nothing else
        return node

    def _folder(self, path: str | None, fh: int) -> Folder:
        node = self._node(path, fh)
        assert isinstance(node, Folder)  # noqa: S101 - the kernel asks nothing else
        return node

    # --- called by mfusepy, with these names ---

    def init_with_config(self, connection: Any, config: Any) -> None:
        config.use_ino = config.hard_remove = 1
        config.entry_timeout = config.attr_timeout = config.negative_timeout = 0.0

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        with self.guard:
            node = self._node(path, fh)
            size = len(node.content) if isinstance(node, File) else 0
            return {
                "st_ino": node.number,
                "st_mode": node.mode,
                "st_nlink": 1 if isinstance(node, File) else 2,
                "st_uid": node.owner[0],
                "st_gid": node.owner[1],
                "st_size": size,
                "st_blocks": -(-size // 512),
                "st_atime": node.times[0],
                "st_mtime": node.times[1],
                "st_ctime": node.times[1],
            }

    def opendir(self, path: str) -> int:
        with self.guard:
            return self._handle(self.disk.folder(path), path)

    def readdir(self, path: str | None, fh: int) -> list[tuple[str, dict[str, int], int]]:
        with self.guard:
            names = {".": self._folder(path, fh), "..": self.disk.root} | self._folder(path, fh).names
            return [(name, {"st_ino": node.number, "st_mode": node.mode}, 0) for name, node in names.items()]

    def statfs(self, path: str) -> dict[str, int]:
        free = {"f_blocks": BLOCKS, "f_bfree": BLOCKS, "f_bavail": BLOCKS, "f_files": BLOCKS, "f_ffree": BLOCKS}
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255} | free

    def mknod(self, path: str, mode: int, dev: int) -> int:
        with self._changing("create", path):
            self.disk.create(path, mode, _caller())
        return 0

    def create(self, path: str, mode: int) -> int:
        with self._changing("create", path):
            return self._handle(self.disk.create(path, stat.S_IFREG | mode, _caller()), path)

    def open(self, path: str, flags: int) -> int:
        with self.guard:
            file = self.disk.file(path)
        if flags & os.O_TRUNC:
            self.truncate(path, 0)
        return self._handle(file, path)

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        with self.guard:
            return bytes(self._file(path, fh).content[offset : offset + size])

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        with self._changing("write", self._open[fh][1]):
            return self.disk.write(self._file(path, fh), data, offset)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        with self._changing("truncate", path or self._open[fh or 0][1]):
            self.disk.truncate(self._file(path, fh), length)
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        with self._changing("fsync", self._open[fh][1]):
            self._file(path, fh).sync()
        return 0

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        with self._changing("fsyncdir", self._open[fh][1]):
            self._folder(path, fh).sync()
        return 0

    def flush(self, path: str | None, fh: int) -> int:
        return 0

    def release(self, path: str | None, fh: int) -> int:
        self._open.pop(fh, None)
        return 0

    releasedir = release

    def mkdir(self, path: str, mode: int) -> int:
        with self._changing("mkdir", path):
            self.disk.mkdir(path, mode, _caller())
        return 0

    def unlink(self, path: str) -> int:
        with self._changing("unlink", path):
            self.disk.remove(path)
        return 0

    def rmdir(self, path: str) -> int:
        with self._changing("rmdir", path):
            self.disk.remove(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        with self._changing("rename", old):
            self.disk.rename(old, new)
        return 0

    def chmod(self, path: str | None, mode: int) -> int:
        with self._changing("chmod", path or ""):
            node = self.disk.find(path or "")
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    def chown(self, path: str | None, uid: int, gid: int) -> int:
        with self._changing("chown", path or ""):
            node = self.disk.find(path or "")
            node.owner = (node.owner[0] if uid == -1 else uid, node.owner[1] if gid == -1 else gid)
        return 0

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> int:
        with self._changing("utimens", path or ""):
            self.disk.find(path or "").times = times or (time.time_ns(), time.time_ns())
        return 0


class Server:
    """Mounts again and again: each cut unmounts, so that the kernel forgets as well."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._operations = Operations(Disk())
        self._cut: dict[str, Any] | None = None
        self._ended = False

    def run(self) -> None:
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        answer: dict[str, Any] = {"mounted": True}
        while not self._ended:
            threading.Thread(target=self._tell_once_mounted, args=(answer,), daemon=True).start()
            mfusepy.FUSE(self._operations, self._folder, foreground=True, nothreads=True, fsname="forgetful")
            if self._cut is None:
                break
            rng = random.Random(self._cut["seed"])
            answer = {"lost": self._operations.disk.cut(rng, self._cut.get("habit"))}
            self._cut, self._operations.frozen, self._operations.armed = None, False, None

    def _tell_once_mounted(self, answer: dict[str, Any]) -> None:
        while not os.path.ismount(self._folder):
            time.sleep(0.005)
        tell(**answer)

    def _listen(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "cut":
                self._cut = order
                self._unmount()
                continue
            with self._operations.guard:
                if order["do"] == "freeze":
                    self._operations.frozen, self._operations.armed = True, None
                elif order["do"] == "arm":
                    self._operations.armed = order
            tell(done=order["do"])
        self._ended = True
        self._unmount("-z")

    def _unmount(self, *how: str) -> None:
        ends_at = time.monotonic() + UNMOUNT_TIMEOUT_S
        while subprocess.run([*UNMOUNT, *how, self._folder], check=False).returncode and time.monotonic() < ends_at:
            time.sleep(0.02)


def tell(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def _caller() -> tuple[int, int]:
    uid, gid, _ = mfusepy.fuse_get_context()
    return uid, gid


if __name__ == "__main__":
    Server(sys.argv[1]).run()
