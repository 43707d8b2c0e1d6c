"""The file system that forgets: it keeps what POSIX promises, and of the rest any part that a disk could have."""

import errno
import random
import stat
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rig.forgetful_disk import HABITS, PAGE_BYTES, SECTOR_BYTES, Disk, File, Folder

SEEDS = range(300)
KEEPS_NOTHING = "none"
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5 * PAGE_BYTES), st.integers(1, 2 * PAGE_BYTES)),
        st.tuples(st.just("truncate"), st.integers(0, 5 * PAGE_BYTES), st.just(0)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


def disk_with(*names: str) -> Disk:
    """A disk with empty files whose names are kept."""
    disk = Disk()
    for name in names:
        disk.create(name, 0o600)
    disk.root.sync()
    return disk


def outcomes(make: Callable[[], Disk], read: Callable[[Disk], object], habit: str | None = None) -> set[object]:
    """What may be on the disk after a cut."""
    found = set()
    for seed in SEEDS:
        disk = make()
        disk.cut(random.Random(seed), habit)
        found.add(read(disk))
    return found


def content(disk: Disk, path: str = "/a") -> bytes:
    return bytes(disk.file(path).content)


# --- contents ---


@pytest.mark.parametrize("habit", HABITS)
def test_what_was_synced_is_kept_whatever_the_habit(habit: str) -> None:
    disk = disk_with("/a")
    disk.write(disk.file("/a"), b"synced" * 2000, 0)
    disk.file("/a").sync()
    assert disk.cut(random.Random(1), habit) == {}
    assert content(disk) == b"synced" * 2000


def test_a_write_is_seen_at_once_and_forgotten_without_a_sync() -> None:
    disk = disk_with("/a")
    disk.write(disk.file("/a"), b"unsynced", 0)
    assert content(disk) == b"unsynced"
    assert disk.cut(random.Random(1), KEEPS_NOTHING) == {"/a": 1}
    assert content(disk) == b""


def test_pages_are_kept_in_any_order_and_torn_between_sectors() -> None:
    def written() -> Disk:
        disk = disk_with("/a")
        disk.write(disk.file("/a"), bytes(2 * PAGE_BYTES), 0)
        disk.file("/a").sync()
        disk.write(disk.file("/a"), b"1" * PAGE_BYTES + b"2" * PAGE_BYTES, 0)
        return disk

    seen = outcomes(written, content)
    old, one, two = bytes(PAGE_BYTES), b"1" * PAGE_BYTES, b"2" * PAGE_BYTES
    assert {old + old, one + old, old + two, one + two} <= seen  # the second page without the first, too
    torn = seen - {old + old, one + old, old + two, one + two}
    assert torn
    for state in torn:
        assert isinstance(state, bytes)
        for begin in range(0, len(state), SECTOR_BYTES):
            assert len(set(state[begin : begin + SECTOR_BYTES])) == 1


def test_a_page_never_goes_back_behind_what_came_later() -> None:
    def rewritten() -> Disk:
        disk = disk_with("/a")
        for version in (b"1", b"2", b"3"):
            disk.write(disk.file("/a"), version * SECTOR_BYTES, 0)
        return disk

    assert outcomes(rewritten, content) == {b"", *(version * SECTOR_BYTES for version in (b"1", b"2", b"3"))} | {
        bytes(SECTOR_BYTES)  # the size without the bytes
    }


def test_a_file_cut_short_keeps_its_old_end_or_its_new_one() -> None:
    def shortened() -> Disk:
        disk = disk_with("/a")
        disk.write(disk.file("/a"), b"x" * 3 * PAGE_BYTES, 0)
        disk.file("/a").sync()
        disk.truncate(disk.file("/a"), 10)
        return disk

    sizes = outcomes(shortened, lambda disk: len(content(disk)))
    assert sizes == {10, 3 * PAGE_BYTES}


@given(steps, st.integers(0, 2**32))
def test_a_cut_that_keeps_all_changes_nothing_and_one_that_keeps_none_goes_back_to_the_sync(
    steps: list[tuple[str, int, int]], seed: int
) -> None:
    for habit in ("all", "none", None):
        disk, synced = disk_with("/a"), b""
        file = disk.file("/a")
        for number, (step, offset, size) in enumerate(steps, 1):
            if step == "write":
                disk.write(file, bytes([number]) * size, offset)
            elif step == "truncate":
                disk.truncate(file, offset)
            else:
                file.sync()
                synced = content(disk)
        seen = content(disk)
        disk.cut(random.Random(seed), habit)
        if habit is not None:
            assert content(disk) == (seen if habit == "all" else synced)
        assert disk.cut(random.Random(seed), KEEPS_NOTHING) == {}  # what a cut has left is on the disk


# --- names ---


def test_syncing_a_file_keeps_its_bytes_and_not_its_name() -> None:
    disk = Disk()
    file = disk.create("/a", 0o600)
    disk.write(file, b"bytes", 0)
    file.sync()
    disk.cut(random.Random(1), KEEPS_NOTHING)
    with pytest.raises(FileNotFoundError):
        disk.find("/a")


def test_syncing_a_folder_keeps_names_and_not_bytes() -> None:
    disk = Disk()
    disk.write(disk.create("/a", 0o600), b"bytes", 0)
    disk.root.sync()
    disk.cut(random.Random(1), KEEPS_NOTHING)
    assert content(disk) == b""


def test_a_renamed_file_has_one_of_its_names_and_what_it_replaced_is_there_till_then() -> None:
    def replaced() -> Disk:
        disk = disk_with("/a", "/new")
        for path in ("/a", "/new"):
            disk.write(disk.file(path), path.encode(), 0)
            disk.file(path).sync()
        disk.rename("/new", "/a")
        return disk

    states = outcomes(replaced, lambda disk: (content(disk), "new" in disk.root.names))
    assert states == {(b"/a", True), (b"/new", False)}


def test_changes_of_names_are_kept_in_any_order() -> None:
    def several() -> Disk:
        disk = disk_with("/a", "/b")
        disk.remove("/a")
        disk.rename("/b", "/c")
        disk.create("/d", 0o600)
        return disk

    states = outcomes(several, lambda disk: frozenset(disk.root.names))
    assert {frozenset("ab"), frozenset("cd"), frozenset("abd"), frozenset("ac"), frozenset("b")} <= states


def test_a_removed_file_comes_back_with_what_was_synced() -> None:
    disk = disk_with("/a")
    disk.write(disk.file("/a"), b"old", 0)
    disk.file("/a").sync()
    disk.remove("/a")
    disk.write(disk.create("/a", 0o600), b"new", 0)
    disk.cut(random.Random(1), KEEPS_NOTHING)
    assert content(disk) == b"old"


def test_folders_are_names_of_their_folder() -> None:
    disk = Disk()
    disk.mkdir("/folder", 0o700)
    disk.root.sync()
    disk.create("/folder/a", 0o600)
    disk.create("/folder/b", 0o600)
    folder = disk.folder("/folder")
    folder.sync()
    disk.rename("/folder/b", "/b")
    disk.cut(random.Random(1), KEEPS_NOTHING)
    assert isinstance(disk.find("/folder"), Folder)
    assert sorted(disk.folder("/folder").names) == ["a", "b"]
    assert isinstance(disk.file("/folder/a"), File)
    assert stat.S_IMODE(disk.find("/folder").mode) == 0o700


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (lambda disk: disk.find("/none"), errno.ENOENT),
        (lambda disk: disk.create("/a", 0o600), errno.EEXIST),
        (lambda disk: disk.create("/a/b", 0o600), errno.ENOTDIR),
        (lambda disk: disk.file("/folder"), errno.EISDIR),
        (lambda disk: disk.remove("/folder"), errno.ENOTEMPTY),
        (lambda disk: disk.rename("/none", "/a"), errno.ENOENT),
    ],
)
def test_it_refuses_what_a_file_system_refuses(do: Callable[[Disk], object], error: int) -> None:
    disk = disk_with("/a")
    disk.mkdir("/folder", 0o700)
    disk.create("/folder/in", 0o600)
    with pytest.raises(OSError, match=r".") as raised:
        do(disk)
    assert raised.value.errno == error


def test_the_same_seed_loses_the_same() -> None:
    def written() -> Disk:
        disk = disk_with("/a")
        for number in range(100):
            disk.write(disk.file("/a"), bytes([number]) * 700, number * 600)
        return disk

    first, second = written(), written()
    assert first.cut(random.Random(7)) == second.cut(random.Random(7))
    assert content(first) == content(second)
