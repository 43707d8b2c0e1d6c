"""Findings, without the machine: how checks run side by side, and what they make of what they see."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from common.at_rest import read_only
from common.errors import SeriesGatewayError
from console import machine
from console.findings import Check, Finding, failed, find, of_error, ok, show, table

ROOT = Path(__file__).parents[2]
MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
overlay /var/lib overlay rw 0 0
tmpfs /run tmpfs rw 0 0
server:/export /mnt/with\\040space nfs4 rw 0 0
/dev/sdb1 /run/data xfs rw 0 0
/dev/sdc1 /data ext4 rw 0 0
tmpfs /data tmpfs rw 0 0
"""


async def test_checks_run_side_by_side_and_keep_their_order() -> None:
    met = threading.Barrier(2, timeout=60)

    def one() -> list[Finding]:
        met.wait()
        return [ok("one", "met the other")]

    def other() -> list[Finding]:
        met.wait()
        return [ok("other", "met one")]

    assert [finding.what for finding in await find({"one": one, "other": other}, 10)] == ["one", "other"]


async def test_a_check_that_breaks_or_hangs_is_a_failed_line_without_the_errors_text() -> None:
    def breaks() -> list[Finding]:
        raise ZeroDivisionError("Doe^Jane")

    async def hangs() -> list[Finding]:
        await asyncio.Event().wait()
        return []

    checks: dict[str, Check] = {"breaks": breaks, "hangs": hangs, "fine": lambda: [ok("fine", "")]}
    broke, hung, fine = await find(checks, 1)
    assert (broke.state, hung.state, fine.state) == ("failed", "failed", "ok")
    assert "ZeroDivisionError at tests/unit/test_check.py" in broke.detail
    assert "Doe" not in broke.detail
    assert hung.detail == "no result within 1 s"


def test_the_last_sentence_of_an_error_is_its_cure() -> None:
    error = SeriesGatewayError("GATEWAY_X=/a.b: it is wrong. Make it right.")
    assert of_error("x", error) == failed("x", "GATEWAY_X=/a.b: it is wrong", "Make it right.")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/var/lib/gateway", "overlay"),
        ("/var/library", "ext4"),
        ("/run/x", "tmpfs"),
        ("/run/data/x", "xfs"),
        ("/mnt/with space/x", "nfs4"),
        ("/data", "tmpfs"),
    ],
)
def test_the_innermost_and_last_mount_says_the_kind_of_file_system(path: str, kind: str) -> None:
    assert machine.filesystem(Path(path), MOUNTS)[0] == kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("overlay", "container"),
        ("nfs4", "cannot trust"),
        ("cifs", "cannot trust"),
        ("virtiofs", "cannot trust"),
        ("fuse.sshfs", "network drive"),
        ("fuse", "a file system of a program"),
        ("fuse.anything", "a file system of a program"),
        ("fuseblk", "a file system of a program"),
        ("vfat", "power cut"),
        ("tmpfs", "reboot"),
    ],
)
def test_a_file_system_that_forgets_or_lies_is_a_warning(kind: str, words: str) -> None:
    finding = machine.judged("x", "GATEWAY_JOURNAL_PATH", kind, ["rw"])
    assert (finding.state, words in finding.detail) == ("warning", True)
    assert finding.cure == "Use a file on a local disk (in a container: on a volume): change GATEWAY_JOURNAL_PATH."


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "fusectl"])
def test_a_local_file_system_is_well(kind: str) -> None:
    assert machine.judged("x", "GATEWAY_JOURNAL_PATH", kind, ["rw", "relatime"]).state == "ok"


@pytest.mark.parametrize("option", ["nobarrier", "barrier=0"])
def test_a_mount_that_does_not_wait_for_its_disk_is_a_warning(option: str) -> None:
    mounts = f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /data ext4 rw,{option} 0 0\n"
    finding = machine.judged("x", "DATABASE_URL", *machine.filesystem(Path("/data/x"), mounts))
    assert (finding.state, option in finding.detail) == ("warning", True)
    assert machine.judged("x", "DATABASE_URL", *machine.filesystem(Path("/home"), mounts)).state == "ok"


def test_what_answers_a_sync_faster_than_a_disk_can_is_a_warning() -> None:
    finding = machine.speed("x", Path("/data"), machine.FASTEST_FSYNC_S / 2)
    assert (finding.state, "faster than any disk" in finding.detail) == ("warning", True)
    assert machine.speed("x", Path("/data"), machine.FASTEST_FSYNC_S).state == "ok"


def test_a_slow_fsync_says_what_that_means() -> None:
    slow = machine.speed("x", Path("/data"), 0.05)
    assert (slow.state, "at most 20 images or reports a second" in slow.detail) == ("warning", True)
    assert "faster disk" in slow.cure
    assert machine.speed("x", Path("/data"), 0.002).state == "ok"


def test_the_file_that_measures_is_removed(tmp_path: Path) -> None:
    assert machine.fsync_s(tmp_path, 3) > 0
    assert list(tmp_path.iterdir()) == []


def rendered(finding: Finding) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table([finding]))
    return capture.get()


def test_a_name_with_markup_stays_a_name() -> None:
    assert "PACS [red]A[/nope]" in rendered(ok("PACS [red]A[/nope]", "fine"))


def test_nothing_that_others_say_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    finding = failed("PACS \x1b[2J", "a\x9bb\r", "c\x07")
    assert show([finding], as_json=False) == 3
    for text in (rendered(finding), capsys.readouterr().out):
        assert "PACS \ufffd[2J" in text
        assert not set("\x1b\x9b\r\x07") & set(text)


# --- SQLite files -----------------------------------------------------------------------------------------------


def error_of(code: int) -> sqlite3.Error:
    error = sqlite3.DatabaseError("said")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (sqlite3.SQLITE_CORRUPT, "failed", "is not a sound database: said"),
        (sqlite3.SQLITE_CORRUPT_INDEX, "failed", "is not a sound database: said"),
        (sqlite3.SQLITE_NOTADB, "failed", "is not a sound database: said"),
        (sqlite3.SQLITE_CANTOPEN, "failed", "cannot be read: said"),
        (sqlite3.SQLITE_READONLY_CANTINIT, "failed", "cannot be read: said"),
        (sqlite3.SQLITE_PERM, "failed", "cannot be read: said"),
        (sqlite3.SQLITE_BUSY, "failed", "cannot be read: said"),
        (sqlite3.SQLITE_IOERR_READ, "failed", "cannot be read: said"),
        (sqlite3.SQLITE_INTERRUPT, "ok", "the part that was read"),
    ],
)
def test_only_a_corrupt_file_wants_its_backup(code: int, state: str, words: str) -> None:
    finding = machine.unread("x", Path("/data/x.db"), error_of(code), "Restore a backup.")
    assert (finding.state, words in finding.detail) == (state, True)
    cure = "Restore a backup." if "sound database" in words else machine.AS_ITS_USER
    assert finding.cure == (cure if state == "failed" else "")


def database(path: Path, rows: int = 1) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE x (y INTEGER PRIMARY KEY, z TEXT)")
        connection.executemany("INSERT INTO x (z) VALUES (?)", [("z" * 100,)] * rows)
        connection.commit()
    return path


def test_looking_at_a_file_at_rest_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db")
    assert machine.soundness("x", path, "") == ok("x", f"{path} is sound")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_only_in_the_log_is_seen(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE later (y)")
        assert Path(f"{path}-wal").stat().st_size
        with closing(sqlite3.connect(read_only(path), uri=True)) as reader:
            assert reader.execute("SELECT count(*) FROM later").fetchone() == (0,)


def test_a_large_file_is_read_in_part(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", rows=50_000)
    finding = machine.soundness("x", path, "", patience_s=0.0)
    assert (finding.state, "the part that was read" in finding.detail) == ("ok", True)


def test_an_unsound_file_is_named_with_the_last_that_is_said_of_it(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", rows=2000)
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 4 * 4096] = bytes(4096)
    path.write_bytes(content)
    finding = machine.soundness("x", path, "Restore a backup.")
    assert "is not a sound database" in finding.detail
    assert "***" not in finding.detail
    assert finding.cure == "Restore a backup."


def test_a_file_in_another_users_folder_is_said_to_be_that(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    path = database(folder / "x.db")
    folder.chmod(0)
    command = [sys.executable, "-m", "tests.rig.programs.another_user", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    folder.chmod(0o700)
    expected = [failed("x", f"{path} cannot be read: Permission denied", machine.AS_ITS_USER)]
    assert done.stdout == f"{expected} []\n", done.stderr


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (2**20, "1 MiB"), (70 * 2**30, "70 GiB"), (3 * 2**40, "3.0 TiB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert machine.in_units(size) == text
