"""Power cuts, on a file system that forgets what was not synced. docs/reliability.md has the full round."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.rig.forgetful_mount import ForgetfulMount, forgetful
from bench.rig.processes import ROOT, gateway
from common.at_rest import name_for_good, sync_folder
from tests.rig.commands import NOWHERE
from tests.rig.sending import new_series, send

pytestmark = [pytest.mark.peer("fuse"), pytest.mark.slow]
COMMITS = 100
COMMIT = """
import os, signal, sqlite3, sys
writer, reader = (sqlite3.connect(sys.argv[1], isolation_level=None) for _ in range(2))
assert writer.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
writer.execute("PRAGMA synchronous=" + sys.argv[2])
writer.execute("CREATE TABLE IF NOT EXISTS kept (number)")
for number in range(int(sys.argv[3])):
    writer.execute("INSERT INTO kept VALUES (?)", (number,))
    assert reader.execute("SELECT count(*) FROM kept").fetchone() == (number + 1,)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[ForgetfulMount]:
    with forgetful(tmp_path / "disk") as mount:
        yield mount


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_sqlite_keeps_what_it_has_synced_and_nothing_else(disk: ForgetfulMount, synchronous: str) -> None:
    """Its -wal and its mapped -shm work on it as on any disk, in two connections."""
    path = disk.folder / "x.db"
    done = subprocess.run([sys.executable, "-c", COMMIT, str(path), synchronous, str(COMMITS)], check=False)
    assert done.returncode == -signal.SIGKILL
    disk.cut(1, "none")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (found,) = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'kept'").fetchone()
        count = connection.execute("SELECT count(*) FROM kept").fetchone()[0] if found else 0
    assert (count == COMMITS) == (synchronous == "FULL")


def test_a_frozen_disk_takes_no_change_and_shows_the_old_one_after_the_cut(disk: ForgetfulMount) -> None:
    kept = disk.folder / "kept"
    with kept.open("wb") as file:
        file.write(b"kept")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(disk.folder)
    disk.freeze()
    with pytest.raises(OSError, match="Input/output error"), kept.open("ab", buffering=0) as file:
        file.write(b"lost")
    disk.cut(1, "all")
    assert kept.read_bytes() == b"kept"
    assert os.listdir(disk.folder) == ["kept"]


@pytest.mark.parametrize("before", [True, False])
def test_an_armed_disk_freezes_before_or_after_an_operation(disk: ForgetfulMount, before: bool) -> None:
    old, new = disk.folder / "old", disk.folder / "new"
    old.touch()
    sync_folder(disk.folder)
    disk.arm(["rename"], "old$", before=before)
    if before:
        with pytest.raises(OSError, match="Input/output error"):
            old.rename(new)
    else:
        old.rename(new)
    assert disk.struck.wait(60)
    assert disk.struck_at == "rename /old"
    disk.cut(1, "all")
    assert os.listdir(disk.folder) == ["old" if before else "new"]


def test_a_file_that_was_named_for_good_is_there_after_any_cut(disk: ForgetfulMount) -> None:
    part, path = disk.folder / "part", disk.folder / "file"
    for seed, text in enumerate(("first", "second", "third")):
        part.write_text(text)
        name_for_good(part, path)
        disk.cut(seed, "none")
        assert path.read_text() == text


def test_a_gateway_whose_journals_disk_has_failed_ends_in_order_and_says_so(disk: ForgetfulMount) -> None:
    journal = disk.folder / "journal.db"
    with gateway(disk.folder.parent, NOWHERE, journal_path=journal, idle_timeout_s=600) as (process, port):
        send(port, new_series(3))
        disk.freeze()
        assert process.stop() == 3
        assert not [line for line in process.lines if "Traceback" in line or "ExceptionGroup" in line]
        (told,) = process.events("gateway.undrained")
        assert (told["journal"], told["series"]) == (str(journal), 1)
        assert "disk I/O error" in told["reason"]
        assert f"GATEWAY_JOURNAL_PATH={journal}" in process.lines[-1]


@pytest.mark.timeout(1800)
def test_no_power_cut_loses_or_doubles_what_was_acknowledged() -> None:
    command = [sys.executable, "-m", "bench.faults", "--only", "power cut: both", "--trials", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"faults: trials=5 acknowledged=[1-9]\d* lost=0 doubled=0", last)
