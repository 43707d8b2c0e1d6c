"""A file system in memory that forgets, when its power is cut, what was not synced. Without FUSE: see forgetful_mount.

It promises what POSIX does and no more. `fsync` of a file keeps its content and size, not its name; names are kept by
`fsync` of their folder. Of everything else, a cut keeps nothing, a part, or all, in any order (docs/reliability.md).
"""

import errno
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PAGE_BYTES = 4096  # the unit in which an operating system writes to a disk: each is kept or lost on its own
SECTOR_BYTES = 512  # the unit that a disk writes completely or not at all: a page is torn between two
TORN = 0.3  # share of the pages that miss a write of which some sectors are there
MAX_UNSYNCED = 4096  # changes of a file that wait for a sync; beyond that the oldest reach the disk by themselves
HABITS = ("none", "all", "first", "some", "some", "mixed")
"""What a cut keeps of the unsynced changes of one file or folder.

Nothing; everything; those before a moment; any of them; for "mixed", of each file another of the former.
"""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written at an offset of a file, within one page."""

    offset: int
    data: bytes

    @property
    def page(self) -> int:
        return self.offset // PAGE_BYTES

    def size(self, before: int) -> int:
        """Return the file's size after it."""
        return max(before, self.offset + len(self.data))

    def apply(self, content: bytearray) -> None:
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data

    def torn(self, rng: random.Random) -> Iterator["Write"]:
        """Yield some of its sectors."""
        end = self.offset + len(self.data)
        at = self.offset
        while at < end:
            until = min(end, at - at % SECTOR_BYTES + SECTOR_BYTES)
            if rng.random() < 0.5:
                yield Write(at, self.data[at - self.offset : until - self.offset])
            at = until


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file's new size."""

    to: int

    def size(self, before: int) -> int:
        return self.to

    def apply(self, content: bytearray) -> None:
        del content[self.to :]
        content.extend(bytes(self.to - len(content)))


@dataclass(slots=True)
class Node:
    """What a name stands for. Its mode, owner and times are kept at once."""

    number: int
    mode: int
    owner: tuple[int, int] = (0, 0)
    times: tuple[int, int] = (0, 0)
    """When it was last accessed and modified, ns since 1970."""


@dataclass(slots=True)
class File(Node):
    """A file, a socket or a symbolic link: what processes see of it, and what is on the disk."""

    content: bytearray = field(default_factory=bytearray)
    kept: bytearray = field(default_factory=bytearray)
    unsynced: list[Write | Truncate] = field(default_factory=list)

    def change(self, change: Write | Truncate) -> None:
        change.apply(self.content)
        self.unsynced.append(change)
        if len(self.unsynced) > MAX_UNSYNCED:
            self.unsynced.pop(0).apply(self.kept)
        self.times = (self.times[0], time.time_ns())

    def sync(self) -> None:
        for change in self.unsynced:
            change.apply(self.kept)
        self.unsynced.clear()

    def lose(self, rng: random.Random, habit: str) -> int:
        """Keep of the unsynced changes what the habit says; return how many were lost or torn.

        Each page has on the disk what it held at some moment, and the size is that of a moment: of one moment for all
        with the habit "first", of one for each with "some". The first write that a page misses may be torn.
        """
        moment = _moments(len(self.unsynced), rng, habit)
        sized = moment()
        size = len(self.kept)
        for change in self.unsynced[:sized]:
            size = change.size(size)
        lost = sum(isinstance(change, Truncate) for change in self.unsynced[sized:])
        for page in self._changed_pages():
            since = self._freed(page, sized)  # of a page that was cut off, what it held before cannot come back
            lost += self._lose_page(page, max(since, sized if habit == "first" else moment()), rng, habit)
        Truncate(size).apply(self.kept)
        self.content = bytearray(self.kept)
        self.unsynced.clear()
        return lost

    def _changed_pages(self) -> list[int]:
        pages, size = set(), len(self.kept)
        for change in self.unsynced:
            if isinstance(change, Write):
                pages.add(change.page)
            else:
                pages.update(range(change.to // PAGE_BYTES, -(-size // PAGE_BYTES)))
            size = change.size(size)
        return sorted(pages)

    def _freed(self, page: int, sized: int) -> int:
        cut = (
            n for n, c in enumerate(self.unsynced[:sized], 1) if isinstance(c, Truncate) and c.to <= page * PAGE_BYTES
        )
        return max(cut, default=0)

    def _lose_page(self, page: int, until: int, rng: random.Random, habit: str) -> int:
        """Give a page what it held at a moment; return how many writes it misses."""
        begin = page * PAGE_BYTES
        missed = []
        for number, change in enumerate(self.unsynced):
            if isinstance(change, Truncate):
                if number < until and change.to < begin + PAGE_BYTES:
                    old = max(change.to, begin)
                    self.kept[old : begin + PAGE_BYTES] = bytes(len(self.kept[old : begin + PAGE_BYTES]))
            elif change.page == page and number < until:
                change.apply(self.kept)
            elif change.page == page:
                missed.append(change)
        if missed and habit in ("first", "some") and rng.random() < TORN:
            for sector in missed[0].torn(rng):
                sector.apply(self.kept)
        return len(missed)


@dataclass(slots=True)
class Folder(Node):
    """A folder: what processes see of its names, and what is on the disk."""

    names: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    unsynced: list[dict[str, Node | None]] = field(default_factory=list)
    """Names and what they stand for, None for a removed one. A renaming is one change of two names."""

    def change(self, change: dict[str, Node | None]) -> None:
        _rename(self.names, change)
        self.unsynced.append(change)

    def sync(self) -> None:
        for change in self.unsynced:
            _rename(self.kept, change)
        self.unsynced.clear()

    def lose(self, rng: random.Random, habit: str) -> int:
        """Keep of the unsynced changes what the habit says; return how many were lost."""
        moment = _moments(len(self.unsynced), rng, habit)
        until = moment()
        survivors = [c for n, c in enumerate(self.unsynced) if n < (moment() if habit == "some" else until)]
        for change in survivors:
            _rename(self.kept, change)
        lost = len(self.unsynced) - len(survivors)
        self.names = dict(self.kept)
        self.unsynced.clear()
        return lost


class Disk:
    """The tree of one disk. Paths begin with `/`. Raises OSError, as a file system does."""

    def __init__(self) -> None:
        self._numbers = iter(range(1, 2**62))
        self.root = Folder(next(self._numbers), stat.S_IFDIR | 0o755)

    # --- names ---

    def find(self, path: str) -> Node:
        node: Node = self.root
        for name in _parts(path):
            if not isinstance(node, Folder):
                raise _error(errno.ENOTDIR)
            if name not in node.names:
                raise _error(errno.ENOENT)
            node = node.names[name]
        return node

    def file(self, path: str) -> File:
        node = self.find(path)
        if not isinstance(node, File):
            raise _error(errno.EISDIR)
        return node

    def folder(self, path: str) -> Folder:
        node = self.find(path)
        if not isinstance(node, Folder):
            raise _error(errno.ENOTDIR)
        return node

    def create(self, path: str, mode: int, owner: tuple[int, int] = (0, 0), content: bytes = b"") -> File:
        now = time.time_ns()
        file = File(next(self._numbers), mode if stat.S_IFMT(mode) else stat.S_IFREG | mode, owner, (now, now))
        if content:
            file.change(Write(0, content))
        self._add(path, file)
        return file

    def mkdir(self, path: str, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
        now = time.time_ns()
        self._add(path, Folder(next(self._numbers), stat.S_IFDIR | mode, owner, (now, now)))

    def remove(self, path: str) -> None:
        """Take a name away: of a file, or of an empty folder."""
        node = self.find(path)
        if isinstance(node, Folder) and node.names:
            raise _error(errno.ENOTEMPTY)
        parent, name = self._place(path)
        parent.change({name: None})

    def rename(self, old: str, new: str) -> None:
        """Rename at once within a folder; between two it is a change of each, of which a cut can keep one."""
        node = self.find(old)
        (source, before), (target, after) = self._place(old), self._place(new)
        if source is target:
            if before != after:
                source.change({before: None, after: node})
            return
        target.change({after: node})
        source.change({before: None})

    def _add(self, path: str, node: Node) -> None:
        parent, name = self._place(path)
        if name in parent.names:
            raise _error(errno.EEXIST)
        parent.change({name: node})

    def _place(self, path: str) -> tuple[Folder, str]:
        *above, name = _parts(path)
        return self.folder("/" + "/".join(above)), name

    # --- contents ---

    @staticmethod
    def write(file: File, data: bytes, offset: int) -> int:
        """Write a page at a time: each is kept or lost on its own."""
        done = 0
        while done < len(data):
            size = PAGE_BYTES - (offset + done) % PAGE_BYTES
            file.change(Write(offset + done, data[done : done + size]))
            done += size
        return len(data)

    @staticmethod
    def truncate(file: File, size: int) -> None:
        if size != len(file.content):
            file.change(Truncate(size))

    # --- the power ---

    def cut(self, rng: random.Random, habit: str | None = None) -> dict[str, int]:
        """Forget what was not synced, but for what the habit (else one drawn) keeps; return what was lost, by path."""
        habit = habit or rng.choice(HABITS)
        lost: dict[str, int] = {}
        for path, node in sorted(self._walk(), key=lambda item: (item[0], item[1].number)):
            own = rng.choice([h for h in HABITS if h != "mixed"]) if habit == "mixed" else habit
            if count := node.lose(rng, own):
                lost[path or "/"] = lost.get(path or "/", 0) + count
        return lost

    def _walk(self) -> Iterator[tuple[str, File | Folder]]:
        """Yield everything that has a name now, or had one on the disk."""
        waiting: list[tuple[str, Node]] = [("", self.root)]
        seen: set[int] = set()
        while waiting:
            path, node = waiting.pop()
            if node.number in seen:
                continue
            seen.add(node.number)
            if isinstance(node, Folder):
                ever = [*node.names.items(), *node.kept.items()]
                ever += [(name, one) for change in node.unsynced for name, one in change.items() if one is not None]
                waiting += [(f"{path}/{name}", one) for name, one in ever]
            if isinstance(node, File | Folder):
                yield path, node


def _moments(changes: int, rng: random.Random, habit: str) -> Callable[[], int]:
    """Return what draws how many of the changes had reached the disk."""
    match habit:
        case "none":
            return lambda: 0
        case "all":
            return lambda: changes
    early, late = rng.choice(((0, 0), (0, changes), (0, changes), (changes // 2, changes)))
    if habit == "first":
        return lambda: rng.randint(0, changes)
    return lambda: rng.choice((early, late, rng.randint(0, changes)))


def _rename(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
