"""The journal's file: one journal whatever it is called, durable, and set aside so that nothing wrong is paired."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from common.control import NotRunning, request, serve_control
from gateway.journal import Journal
from gateway.journal_file import BESIDE, SCHEMA_VERSION, _set_aside, connect_or_set_aside
from gateway.journal_reader import JournalUnusable, read
from tests.rig.factories import UNBOUNDED, make_instance, make_report


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return tmp_path / "a" / "journal.db"


def folder_link(path: Path, other: Path) -> None:
    other.parent.rmdir()
    other.parent.symlink_to(path.parent)


@pytest.mark.parametrize(
    "link",
    [lambda path, other: other.symlink_to(path), os.link, folder_link],
    ids=["symbolic", "hard", "folder"],
)
@pytest.mark.parametrize("linked_first", [True, False])
async def test_a_journal_under_two_names_is_one_journal(
    path: Path, link: Callable[[Path, Path], None], linked_first: bool
) -> None:
    other = path.parent.parent / "b" / path.name
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([make_instance("1")])
        if not linked_first:
            link(path, other)
    if linked_first:
        link(path, other)
    for first, second in ((path, other), (other, path)):
        async with Journal.open(first, UNBOUNDED) as journal:
            assert journal.open_instances == 1
            with pytest.raises(JournalUnusable, match="used by another gateway"):
                async with Journal.open(second, UNBOUNDED):
                    pass


async def test_a_journal_is_read_and_its_owner_asked_by_any_of_its_links(path: Path) -> None:
    link = path.parent.parent / "b" / "by-another-name.db"
    link.symlink_to(path)

    async def status() -> dict[str, bool]:
        return {"running": True}

    for served, asked in ((path, link), (link, path)):
        async with Journal.open(served, UNBOUNDED) as journal, serve_control(served, {"status": status}):
            await journal.file_reports([make_report("1")])
            assert read(asked, "SELECT state FROM reports")[-1:] == [{"state": "waiting"}]
            assert await ask_in_thread(asked) == {"running": True}
        with pytest.raises(NotRunning):
            await ask_in_thread(asked)
    assert sorted(file.name for file in link.parent.iterdir()) == [link.name]


async def ask_in_thread(path: Path) -> object:
    return await asyncio.to_thread(request, path, 10.0, "status")


async def test_what_was_acknowledged_is_on_disk_whatever_happens_then(path: Path) -> None:
    wanted = {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1, "auto_vacuum": 2, "journal_size_limit": 2**26}
    with closing(connect_or_set_aside(path)) as connection:  # as Journal.open does
        found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}
    assert found == wanted


class Killed(BaseException):
    """No code of ours catches it, as no code catches SIGKILL."""


@pytest.fixture
def corrupt(path: Path) -> bytes:
    """Leave a corrupt journal, with all that may stand beside one; returns what its log holds."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE old (x)")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("INSERT INTO old VALUES (1)")
        connection.commit()
        kept = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("-wal", "-shm")}
    for suffix, content in {**kept, "-journal": b""}.items():
        Path(f"{path}{suffix}").write_bytes(content)
    path.write_bytes(b"no database " * 1000)
    return kept["-wal"]


def killed_after(renames: int) -> Callable[[str, str], None]:
    done = iter(range(renames))
    rename = os.rename

    def do(old: str, new: str) -> None:
        if next(done, None) is None:
            raise Killed
        rename(old, new)

    return do


@pytest.mark.parametrize("renames", range(4))
async def test_a_kill_while_a_journal_is_set_aside_pairs_nothing_wrong(
    path: Path, corrupt: bytes, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLite could not write the log back before, as it does if it can: then only the file itself is left."""
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", killed_after(renames))
        with pytest.raises(Killed):
            _set_aside(path, "a test", ("", *BESIDE))
    assert path.exists() == (renames == 0)
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([make_instance("1")])
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.open_instances == 1
        assert not read(path, "SELECT 1 FROM sqlite_master WHERE name = 'old'")
    aside = sorted(path.parent.glob("*.corrupt-*"))
    assert [file.read_bytes() for file in aside if file.name.endswith("-wal")] == ([corrupt] if renames else [])
    assert len([file for file in aside if not file.name.endswith(BESIDE)]) == 1


async def test_what_a_journal_that_is_gone_left_is_not_taken_for_the_new_ones(path: Path, corrupt: bytes) -> None:
    path.unlink()
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.open_instances == 0
    (log,) = path.parent.glob("*.corrupt-*-wal")
    assert log.read_bytes() == corrupt


async def test_one_file_of_a_journal_that_is_gone_is_enough_to_be_set_aside(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"another's")
    async with Journal.open(path, UNBOUNDED):
        pass
    (log,) = path.parent.glob("*.corrupt-*")
    assert (log.name.endswith("-wal"), log.read_bytes()) == (True, b"another's")


async def test_two_journals_set_aside_in_one_second_are_both_kept(path: Path) -> None:
    for n in range(3):
        path.write_bytes(b"no database %d" % n * 1000)
        async with Journal.open(path, UNBOUNDED):
            pass
    assert len(list(path.parent.glob("*.corrupt-*"))) == 3


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fsynced by us, in order, beside the names that were changed."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_rename(old: str, new: str) -> None:
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    return done


async def test_the_names_of_files_made_and_set_aside_are_on_disk_before_it_goes_on(
    path: Path, synced: list[str]
) -> None:
    async with Journal.open(path, UNBOUNDED):
        assert synced == [str(path.parent)]
    path.write_bytes(b"no database " * 1000)
    async with Journal.open(path, UNBOUNDED):
        assert synced[1:] == ["rename", str(path.parent), str(path.parent)]


async def test_a_file_system_that_cannot_sync_a_folder_holds_a_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", cannot)
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([make_instance("1")])
    assert read(path, "SELECT count(*) AS n FROM instances") == [{"n": 1}]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
async def test_a_database_that_is_no_journal_is_refused_with_the_cure(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(JournalUnusable, match=r"is no journal.*Use another file"):
        async with Journal.open(path, UNBOUNDED):
            pass


def test_a_journal_is_known_by_the_same_name_whenever_it_is_opened(tmp_path: Path) -> None:
    names = []
    for name in ("a.db", "a.db", "b.db"):
        connection = connect_or_set_aside(tmp_path / name)
        names.append(connection.execute("PRAGMA application_id").fetchone()[0])
        connection.close()
    assert names[0] == names[1] != names[2]
    assert all(names)


async def test_a_control_socket_that_cannot_be_removed_is_left_to_the_next_process(path: Path) -> None:
    """Its disk has failed; what follows at the end of a process is done all the same."""
    address = path.with_name(f"{path.name}.sock")
    async with serve_control(path, {}):
        address.unlink()
        address.mkdir()
    assert address.is_dir()
