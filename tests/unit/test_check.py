"""Findings, without the machine: how checks run side by side, and what they make of what they see."""

import asyncio
import threading
from pathlib import Path

import pytest

import disk
from check import Check, Finding, failed, find, of_error, ok
from models import GatewayError

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
    met = threading.Barrier(2, timeout=10)

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
    broke, hung, fine = await find(checks, 0.05)
    assert (broke.state, hung.state, fine.state) == ("failed", "failed", "ok")
    assert "ZeroDivisionError at test_check.py" in broke.detail
    assert "Doe" not in broke.detail
    assert hung.detail == "no result within 0.05 s"


def test_the_last_sentence_of_an_error_is_its_cure() -> None:
    error = GatewayError("GATEWAY_X=/a.b: it is wrong. Make it right.")
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
    assert disk.filesystem(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(("kind", "words"), [("overlay", "container"), ("nfs4", "cannot trust"), ("tmpfs", "reboot")])
def test_a_file_system_that_forgets_or_lies_is_a_warning(kind: str, words: str) -> None:
    finding = disk.judged("x", "GATEWAY_JOURNAL_PATH", kind)
    assert (finding.state, words in finding.detail) == ("warning", True)
    assert finding.cure == "Name a file on a local disk (in a container: on a volume): change GATEWAY_JOURNAL_PATH."
    assert disk.judged("x", "GATEWAY_JOURNAL_PATH", "ext4").state == "ok"


def test_a_slow_fsync_says_what_that_means() -> None:
    slow = disk.speed("x", Path("/data"), 0.05)
    assert (slow.state, "at most 20 images or reports a second" in slow.detail) == ("warning", True)
    assert "faster disk" in slow.cure
    assert disk.speed("x", Path("/data"), 0.002).state == "ok"


def test_the_file_that_measures_is_removed(tmp_path: Path) -> None:
    assert disk.fsync_s(tmp_path, 3) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (2**20, "1 MiB"), (70 * 2**30, "70 GiB"), (3 * 2**40, "3.0 TiB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert disk.in_units(size) == text
