"""The journal's laws, on real files."""

import asyncio
import json
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from structlog.testing import capture_logs

from gateway import journal as journal_module
from gateway import journal_reader
from gateway.idle import MAX_SOURCES, Fixed
from gateway.journal import Bounds, Journal, JournalUnavailable
from gateway.journal_file import SCHEMA_VERSION, SCHEMAS
from gateway.journal_reader import JournalUnusable, read
from models import Instance, SeriesKey, SeriesReport
from tests.rig.factories import RECEIVED_AT, UNBOUNDED, collector_of, make_instance, make_report, memory_journal

T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(path, UNBOUNDED) as journal:
        yield journal


def rebuilt(journal: Journal) -> list[SeriesReport]:
    """What a gateway that starts on this journal would report."""
    collector = collector_of(Fixed(1), revisions=journal.revisions())
    for instance in journal.replay():
        collector.observe(instance, 0.0)
    return collector.drain(0.0)


def reported(*instances: Instance) -> SeriesReport:
    """What a collector makes of these."""
    collector = collector_of(Fixed(1))
    for instance in instances:
        collector.observe(instance, 0.0)
    (report,) = collector.drain(0.0)
    return report


def instances(*sops: str) -> list[Instance]:
    return [make_instance(sop) for sop in sops]


async def after_restart(path: Path) -> list[SeriesReport]:
    async with Journal.open(path, UNBOUNDED) as journal:
        return rebuilt(journal)


async def test_restart_rebuilds_open_series_exactly(path: Path) -> None:
    first = replace(
        make_instance("1"), undecoded={"PatientName": b"T\xe4st"}, called_ae_title="ARCHIVE", doubtful=("one",)
    )
    late = replace(make_instance("3"), doubtful=("two", "one"))
    later = replace(
        make_instance("2"), attributes={"PatientID": ("P1",), "BodyPartExamined": ("HEAD",), "Modality": ("MR",)}
    )
    other = make_instance("1", series="1.9", patient_id=None)
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([first, later, other])
        await journal.keep([first])  # again
        await journal.keep([late])
    one, two = await after_restart(path)
    assert one == reported(first, later, late)
    assert one.Doubtful == ["one", "two"]
    assert one.Attributes["BodyPartExamined"] == ["HEAD"]
    assert (one.CalledAETitle, two.CalledAETitle) == ("ARCHIVE", None)
    assert one.Undecoded == {"PatientName": "VORzdA=="}
    assert two == reported(other)


async def test_a_journal_that_knows_no_doubts_is_read(path: Path) -> None:
    kept = make_instance("1")
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([kept])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE open_series SET content = json_remove(content, '$[2]')")
    (report,) = await after_restart(path)
    assert report == reported(kept)


def with_own(sop: str, number: str, **more: str) -> Instance:
    """An instance with attributes of its own; `received_at` falls with its number."""
    instance = make_instance(sop)
    own = {"InstanceNumber": (number,)} | {keyword: (value,) for keyword, value in more.items()}
    at = instance.received_at - timedelta(seconds=int(number))
    return replace(instance, received_at=at, attributes={**instance.attributes, **own})


async def test_restart_rebuilds_the_attributes_of_each_instance(path: Path) -> None:
    kept = [
        with_own("1", "3", Rows="8", NumberOfFrames="2"),
        replace(with_own("2", "2", Rows="8"), sop_class_uid=SecondaryCaptureImageStorage),
        replace(with_own("3", "1"), sop_class_uid="", undecoded={"InstanceNumber": b"\xb9"}),
    ]
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep(kept[:2])
        await journal.keep([kept[2], with_own("1", "9")])  # the first of each wins
    (report,) = await after_restart(path)
    assert report == reported(*kept)
    assert report.InstanceAttributes == {
        "SOPClassUID": [CTImageStorage, SecondaryCaptureImageStorage, None],
        "InstanceNumber": ["3", "2", "1"],
        "Rows": ["8", "8", None],
        "NumberOfFrames": ["2", None, None],
    }


async def test_report_is_posted_with_the_gaps_in_its_columns(journal: Journal) -> None:
    kept = [with_own("1", "1"), with_own("2", "2", Rows="8")]
    await journal.keep(kept)
    (waiting,) = await journal.file_reports([reported(*kept)])
    assert SeriesReport.model_validate_json(await journal.report(waiting) or "") == reported(*kept)


async def test_attribute_that_only_a_repeated_instance_carries_survives(path: Path) -> None:
    again = replace(make_instance("1"), attributes={"PatientID": ("P1",), "SeriesDescription": ("T2",)})
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([make_instance("1")])
        await journal.keep([again])
    (report,) = await after_restart(path)
    assert report.Attributes["SeriesDescription"] == ["T2"]


async def test_patient_id_of_several_values_stays_the_same_series(path: Path) -> None:
    instance = replace(make_instance("1"), attributes={"PatientID": ("P1", "P2")})
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([instance])
    (report,) = await after_restart(path)
    assert report.PatientID == "P1\\P2"


async def test_closing_moves_the_reported_instances_and_leaves_later_ones(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep(instances("1", "2"))
        await journal.keep(instances("3"))  # kept after the report was made
        (waiting,) = await journal.file_reports([make_report("1", "2")])
        assert (journal.open_instances, journal.waiting_instances) == (1, 2)
        assert SeriesReport.model_validate_json(await journal.report(waiting) or "") == make_report("1", "2")
    (report,) = await after_restart(path)
    assert (report.Revision, report.SOPInstanceUIDs) == (2, make_report("3").SOPInstanceUIDs)


async def test_instance_in_two_reports_closed_together_is_no_error(journal: Journal) -> None:
    await journal.keep(instances("1"))
    await journal.keep(instances("1"))
    assert len(await journal.file_reports([make_report("1"), make_report("1")])) == 2
    assert (journal.open_instances, journal.waiting_instances) == (0, 2)
    await journal.keep(instances("1"))
    assert journal.open_instances == 1


async def test_reports_survive_with_their_order_and_next_attempt(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        for sop in ("1", "2"):
            await journal.keep(instances(sop))
        first, second = await journal.file_reports([make_report("1"), make_report("2")])
        first = replace(first, attempts=3, next_attempt_at=time.time() + 60)
        await journal.delayed(first, "HTTP 503")
        await journal.pause(time.time() + 99)
        until = journal.paused_until()
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.waiting() == [first, second]
        assert journal.waiting_instances == 2
        assert journal.paused_until() == until


async def test_delivered_report_keeps_its_place_in_the_history_without_its_content(
    journal: Journal, path: Path
) -> None:
    await journal.keep(instances("1"))
    (waiting,) = await journal.file_reports([make_report("1")])
    await journal.delivered(waiting)
    assert (journal.waiting(), journal.waiting_instances) == ([], 0)
    assert read(path, "SELECT state, report FROM reports") == [{"state": "delivered", "report": None}]
    assert list(journal.revisions().values()) == [1]


async def test_refused_report_is_dead_until_replayed_or_discarded_with_a_reason(journal: Journal, path: Path) -> None:
    await journal.keep(instances("1", "2"))
    one, two = await journal.file_reports([make_report("1"), make_report("2")])
    await journal.delayed(replace(one, attempts=3, next_attempt_at=time.time() + 60), "HTTP 503")
    for waiting in (one, two):
        await journal.refused(waiting, "HTTP 422 bad")
    assert (journal.waiting(), journal.waiting_instances) == ([], 0)
    assert [dead.Id for dead in await journal.last_dead(2)] == [two.id, one.id]
    assert [dead.Id for dead in await journal.last_dead(1)] == [two.id]
    assert await journal.replay_dead([one.id, 999]) == [one]  # as if it had never been tried
    assert (journal.waiting(), journal.waiting_instances) == ([one], 1)
    assert await journal.discard_dead(None, "test data") == [two.id]
    assert await journal.discard_dead(None, "again") == []
    rows = read(path, "SELECT state, answer, report IS NULL AS empty FROM reports ORDER BY id")
    assert rows == [
        {"state": "waiting", "answer": None, "empty": 0},
        {"state": "discarded", "answer": "test data", "empty": 1},
    ]


async def test_history_is_bounded_by_number_and_age(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "HISTORY_REPORTS", 3)
    monkeypatch.setattr(journal_module, "PRUNE_EVERY", 1)
    for n in range(8):
        await journal.keep(instances(str(n)))
        (waiting,) = await journal.file_reports([make_report(str(n))])
        await journal.delivered(waiting)
        assert read(path, "SELECT count(*) AS n FROM reports")[0]["n"] <= 3
    monkeypatch.setattr(journal_module, "HISTORY_AGE_S", -1)
    await journal.keep(instances("9"))
    (waiting,) = await journal.file_reports([make_report("9")])
    await journal.delivered(waiting)
    assert read(path, "SELECT count(*) AS n FROM reports")[0]["n"] == 0


async def test_file_shrinks_after_delivery(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "VACUUM_PAGES", 10)
    for n in range(20):
        series = f"1.{n + 1}"
        await journal.keep([make_instance(str(i), series=series) for i in range(400)])
    reports = [make_report(*map(str, range(400)), series=f"1.{n + 1}") for n in range(20)]
    waiting = await journal.file_reports(reports)
    full = read(path, "PRAGMA page_count")[0]["page_count"]
    for one in waiting:
        await journal.delivered(one)
    assert read(path, "PRAGMA page_count")[0]["page_count"] < full - 15
    assert read(path, "PRAGMA freelist_count")[0]["freelist_count"] <= 10


async def test_a_pause_of_the_server_is_known_after_a_restart(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.paused_until() == 0.0
        await journal.pause(1e10)
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.paused_until() == 1e10


async def test_pages_that_are_free_again_count_no_more(journal: Journal, path: Path) -> None:
    await journal.probe()
    empty = journal.used_bytes
    await journal.keep(instances(*map(str, range(2000))))
    (waiting,) = await journal.file_reports([make_report(*map(str, range(2000)))])
    full = journal.used_bytes
    await journal.delivered(waiting)
    assert empty < journal.used_bytes < full / 2
    pages = {name: read(path, f"PRAGMA {name}")[0][name] for name in ("page_count", "freelist_count", "page_size")}
    assert pages["freelist_count"]
    assert journal.used_bytes == (pages["page_count"] - pages["freelist_count"]) * pages["page_size"]


@pytest.mark.parametrize("block", [1, 4096])
async def test_just_as_much_space_as_asked_for_is_enough(
    path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The space that this user may take, which is less than all that is free."""

    @dataclass
    class Disk:
        f_bavail: int
        f_bfree: int = 10**9
        f_frsize: int = block

    monkeypatch.setattr("gateway.journal.MEASURED_FOR_S", 0.0)
    async with Journal.open(path, Bounds(10**9, 10**12, 100 * block)) as journal:
        for blocks, enough in ((100, True), (99, False)):
            monkeypatch.setattr(os, "statvfs", lambda _, blocks=blocks: Disk(blocks))
            assert (journal.saturated() is None) == enough


async def test_what_waits_together_is_committed_together_and_failure_keeps_nothing() -> None:
    statements: list[str] = []
    with memory_journal() as journal:
        journal.connection.set_trace_callback(statements.append)
        await journal.keep(instances(*map(str, range(50))))
        assert [s for s in statements if s == "COMMIT"] == ["COMMIT"]
        assert len([s for s in statements if "INTO instances" in s]) == 1
        unstorable: Any = {}
        with pytest.raises(JournalUnavailable):
            await journal.keep(
                [make_instance("y"), replace(make_instance("x", series="1.7"), sop_class_uid=unstorable)]
            )
        assert journal.open_instances == 50
        assert journal.failing
        assert journal.saturated() == journal.failing
        await journal.probe()
        assert journal.saturated() is None
        assert {i.sop_instance_uid for i in journal.replay()} == {
            i.sop_instance_uid for i in instances(*map(str, range(50)))
        }


async def test_bounds_saturate_with_the_settings_name(path: Path) -> None:
    for bounds, reason in (
        (Bounds(1, 10**12, 0), "max_pending_instances=1"),
        (Bounds(10**9, 1, 0), "journal_max_bytes=1"),
        (Bounds(10**9, 10**12, 10**18), "min_free_bytes=1"),
    ):
        async with Journal.open(path, bounds) as journal:
            await journal.keep(instances("1"))
            assert str(journal.saturated()).startswith(reason) or reason in str(journal.saturated())


async def test_second_gateway_on_the_same_journal_is_refused_with_the_cure(journal: Journal, path: Path) -> None:
    with pytest.raises(JournalUnusable, match=r"used by another gateway.*give each gateway its own"):
        async with Journal.open(path, UNBOUNDED):
            pass


@pytest.mark.parametrize("how", ["garbage", "torn page"])
async def test_corrupt_file_is_set_aside_whole_and_said_loudly(path: Path, how: str) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep(instances(*map(str, range(500))))
    content = bytearray(path.read_bytes())
    if how == "garbage":
        content[:] = os.urandom(len(content))
    else:
        content[8192 : len(content) - 4096] = b"\xff" * (len(content) - 12288)
    path.write_bytes(content)
    with capture_logs() as logs:
        async with Journal.open(path, UNBOUNDED) as journal:
            assert journal.open_instances == 0
            await journal.keep(instances("1"))
    (aside,) = path.parent.glob("journal.db.corrupt-*")
    assert re.fullmatch(r"journal\.db\.corrupt-\d{8}T\d{6}Z", aside.name)
    assert aside.read_bytes()[4096:] == bytes(content)[4096:]  # SQLite marks its first page as opened
    (entry,) = logs
    assert (entry["event"], entry["log_level"], entry["moved_to"]) == ("journal.set_aside", "error", str(aside))


async def test_journal_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match="newer version"):
        async with Journal.open(path, UNBOUNDED):
            pass
    assert path.read_bytes()[96:100] == before[96:100]
    assert not list(path.parent.glob("*.corrupt-*"))


@pytest.mark.parametrize("bad", ["no/such/folder/journal.db", "."])
async def test_path_that_cannot_be_opened_is_named_with_the_cure(tmp_path: Path, bad: str) -> None:
    with pytest.raises(JournalUnusable, match="GATEWAY_JOURNAL_PATH="):
        async with Journal.open(tmp_path / bad, UNBOUNDED):
            pass


async def test_reading_a_journal_that_is_not_there_is_an_error_and_makes_none(path: Path) -> None:
    with pytest.raises(JournalUnusable, match="no journal there"):
        read(path, "SELECT 1")
    assert not path.exists()


async def test_reader_sees_what_is_committed_while_the_gateway_writes(journal: Journal, path: Path) -> None:
    await journal.keep(instances("1", "2"))
    assert read(path, "SELECT count(*) AS n FROM instances") == [{"n": 2}]
    await journal.keep(instances("3"))
    assert read(path, "SELECT count(*) AS n FROM instances") == [{"n": 3}]


async def test_writes_of_many_tasks_are_serial(journal: Journal) -> None:
    tasks: list[Awaitable[None]] = [journal.keep(instances(str(n))) for n in range(50)]
    await asyncio.gather(*tasks)
    assert journal.open_instances == 50


async def test_what_the_idle_policy_learnt_is_kept_and_the_last_word_counts(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.file_reports(
            [make_report("1")], {("CT1", "CT", "A"): "old", ("MR1", "MR", ""): "x", ("US1", "US", ""): ""}
        )
        await journal.file_reports(
            [make_report("2")], {("CT1", "CT", "A"): "new", ("CT1", "CT", "B"): "b", ("US1", "US", ""): None}
        )
    async with Journal.open(path, UNBOUNDED) as journal:
        learnt = journal.learnt()
    assert list(learnt.items()) == [(("MR1", "MR", ""), "x"), (("CT1", "CT", "A"), "new"), (("CT1", "CT", "B"), "b")]


async def test_how_far_a_pacs_is_trusted_survives_a_restart(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.trust() == {}
        await journal.file_reports([make_report("1")], trust={"PACS": 3, "OLD": 10})
        await journal.file_reports([], trust={"PACS": 0})
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.trust() == {"PACS": 0, "OLD": 10}


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_a_journal_of_a_version_before_goes_on(path: Path, version: int) -> None:
    schema = "".join(SCHEMAS[:version])
    content = json.dumps([{"PatientID": ["P1"], "Modality": ["CT"], "InstanceNumber": ["1"], "Rows": ["8"]}, {}])
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{schema} PRAGMA user_version = {version};")
        connection.execute(
            "INSERT INTO open_series (id, study_instance_uid, series_instance_uid, patient_id, sop_class_uid, "
            "transfer_syntax_uid, calling_ae_title, peer_address, content) "
            "VALUES (1, ?, ?, ?, ?, '1.2', 'CT1', '::1', ?)",
            (*make_instance().key, CTImageStorage, content),
        )
        insert = "INSERT INTO instances (series_id, sop_instance_uid, received_at) VALUES (1, ?, 0)"
        connection.execute(insert, (make_instance("1").sop_instance_uid,))
        if version >= 2:
            connection.execute("INSERT INTO learnt (calling_ae_title, modality, content) VALUES ('MR1', 'MR', 'old')")
        connection.commit()
    async with Journal.open(path, UNBOUNDED) as journal:
        list(journal.replay())
        await journal.keep([with_own("2", "2", Rows="9")])
        old = {("MR1", "MR", ""): "old"} if version >= 2 else {}
        assert journal.learnt() == old
        await journal.file_reports([make_report("1", series="1.7")], {("CT1", "CT", "S"): "x"}, trust={"PACS": 1})
        assert journal.learnt() == {**old, ("CT1", "CT", "S"): "x"}
    (report,) = await after_restart(path)
    assert (report.SOPInstanceUIDs, report.Attributes["Modality"]) == (make_report("1", "2").SOPInstanceUIDs, ["CT"])
    assert report.InstanceAttributes == {  # of the one kept before, nobody knows
        "SOPClassUID": [None, CTImageStorage],
        "InstanceNumber": [None, "2"],
        "Rows": [None, "9"],
    }


async def test_who_sent_what_was_reported_is_counted_with_it(path: Path) -> None:
    first = make_report("1", "2").model_copy(update={"Source": "CT1 CT"})
    later = first.model_copy(update={"Revision": 2, "LastReceivedAt": RECEIVED_AT + timedelta(hours=1)})
    part = first.model_copy(update={"Verdict": None})
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.file_reports([part, later, first, make_report("1", series="1.2")])
    at = (RECEIVED_AT + timedelta(hours=1)).timestamp()
    assert journal_reader.sources(path) == [{"name": "CT1 CT", "last_image_at": at, "series": 1, "images": 4}]


async def test_names_that_a_stranger_makes_up_never_evict_a_known_source(path: Path) -> None:
    def of(source: str, series: str) -> SeriesReport:
        return make_report("1", series=series).model_copy(update={"Source": source})

    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.file_reports([of("CT1 CT", "1.1"), of("CT1 CT", "1.2")])
        await journal.file_reports([of(f"X{n}", f"2.{n}") for n in range(MAX_SOURCES + 5)])
    names = [row["name"] for row in journal_reader.sources(path)]
    assert len(names) == MAX_SOURCES
    assert "CT1 CT" in names


async def test_dead_letters_are_counted_after_a_restart(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        for waiting in await journal.file_reports([make_report("1"), make_report("2")]):
            await journal.refused(waiting, "HTTP 422")
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.dead_letters == 2
        assert [dead.Instances for dead in await journal.last_dead(1)] == [1]
        await journal.replay_dead(None)
        assert (journal.dead_letters, journal.waiting_instances) == (0, 2)


async def test_a_disk_that_is_full_after_a_delivery_does_not_undo_it(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving pages back to the file system can fail; the report is delivered all the same, and counted once."""
    (waiting,) = await journal.file_reports([make_report("1")])

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(journal, "_one", full)
        broken.setattr(journal_module, "PRUNE_EVERY", 1)
        await journal.delivered(waiting)
        await journal.delivered(waiting)  # as after an answer that was lost
    assert (journal.waiting_instances, journal.dead_letters, journal.failing) == (0, 0, None)
    await journal.refused(waiting, "too late")
    assert (journal.waiting_instances, journal.dead_letters) == (0, 0)


async def test_a_read_that_works_does_not_hide_that_nothing_can_be_written(journal: Journal) -> None:
    journal.failing = "journal: disk I/O error"
    await journal.last_dead(1)
    assert journal.failing is not None
    await journal.probe()
    assert journal.failing is None


async def test_a_report_keeps_its_trace_and_its_age(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        (before,) = await journal.file_reports([make_report("1")], traceparents=["00-1-2-01"])
    async with Journal.open(path, UNBOUNDED) as journal:
        (after,) = journal.waiting()
    assert (after.traceparent, after.reported_at) == ("00-1-2-01", before.reported_at)


async def test_a_new_journal_is_its_owners_only(path: Path, journal: Journal) -> None:
    await journal.keep([make_instance()])
    files = [file for file in path.parent.iterdir() if file.suffix != ".lock"]
    assert {file.stat().st_mode & 0o077 for file in files} == {0}
    assert len(files) == 3


def part(*sops: str, revision: int = 1) -> SeriesReport:
    """A report of what is here so far."""
    return make_report(*sops).model_copy(update={"Verdict": None, "Revision": revision})


async def test_a_part_leaves_its_series_open_and_numbering_goes_on(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep(instances("1"))
        await journal.file_reports([make_report("1")])
        await journal.keep(instances("2"))
        (waiting,) = await journal.file_reports([part("2", revision=2)])
        assert waiting.part
        assert (journal.open_instances, journal.waiting_instances) == (1, 1)
        await journal.delivered(waiting)
        assert (journal.open_instances, journal.waiting_instances) == (1, 1)
        await journal.keep(instances("3"))
    (report,) = await after_restart(path)
    assert (report.Revision, report.SOPInstanceUIDs) == (2, make_report("2", "3").SOPInstanceUIDs)


async def test_a_newer_report_stands_for_the_parts_before_it_that_wait(path: Path) -> None:
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep(instances("1", "2"))
        (delivered,) = await journal.file_reports([part("1")])
        await journal.delivered(delivered)
        (dead,) = await journal.file_reports([part("1")])
        await journal.refused(dead, "HTTP 422")
        first, second = await journal.file_reports([part("1"), part("1", "2")])
        other = (await journal.file_reports([make_report("1", series="1.7").model_copy(update={"Verdict": None})]))[0]
        assert journal.waiting() == [second, other]
        (final,) = await journal.file_reports([make_report("1", "2")])
        assert [await journal.report(one) for one in (first, second)] == [None, None]
        await journal.delivered(second)  # it was being posted
        assert journal.waiting() == [other, final]
        assert (journal.open_instances, journal.waiting_instances) == (0, 2)
    async with Journal.open(path, UNBOUNDED) as journal:
        assert journal.waiting() == [other, final]
        assert (journal.waiting_instances, journal.dead_letters) == (2, 0)
    assert [row["id"] for row in read(path, "SELECT id FROM reports WHERE state = 'delivered'")] == [delivered.id]


async def test_parts_alone_never_fill_the_journal(path: Path) -> None:
    """Else a server that is down would stop the gateway before it holds what it may hold."""
    async with Journal.open(path, Bounds(10, 10**12, 0)) as journal:
        for n in range(1, 9):
            await journal.keep(instances(str(n)))
            await journal.file_reports([part(*map(str, range(1, n + 1)))])
            assert journal.saturated() is None
        await journal.refused(journal.waiting()[0], "HTTP 422")
        await journal.replay_dead(None)
        assert journal.saturated() is None
        await journal.file_reports([make_report(*map(str, range(1, 9)))])
        assert (journal.open_instances, journal.waiting_instances) == (0, 8)
        for waiting in journal.waiting():
            await journal.delivered(waiting)
        assert journal.waiting_instances == 0


async def test_undelivered_is_what_waits_or_is_dead_of_that_series(journal: Journal) -> None:
    delivered, dead, _, _, _ = await journal.file_reports(
        [
            make_report("1"),
            make_report("2", "3"),
            make_report("3", "4"),
            make_report("5", series="1.7"),
            make_report("6", patient_id=None),
        ]
    )
    await journal.delivered(delivered)
    await journal.refused(dead, "HTTP 422")
    assert sorted(await journal.undelivered(make_report("1").key)) == make_report("2", "3", "4").SOPInstanceUIDs
    assert await journal.undelivered(make_report("1", patient_id=None).key) == make_report("6").SOPInstanceUIDs
    assert await journal.undelivered(make_report("1", patient_id="P2").key) == []


BAD = SeriesKey("not a UID \ud800", "1.2\0", "P1\udcff")


async def test_what_no_report_can_be_made_of_is_set_aside_whole_and_costs_nothing_else(path: Path) -> None:
    bad = make_instance("1", study=BAD.study_instance_uid, series=BAD.series_instance_uid, patient_id=BAD.patient_id)
    bad = replace(bad, sop_instance_uid="\ud800")
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([bad, make_instance("2")])
        await journal.set_aside(BAD, ["\ud800"], 2**70, "ValidationError at collector.py:1")
        assert (journal.open_instances, journal.waiting_instances, journal.dead_letters) == (1, 0, 1)
        assert await journal.replay_dead(None) == []
        (one,) = await journal.dead(None)
    (row,) = read(path, "SELECT * FROM reports")
    assert (row["id"], row["state"], row["instances"], row["verdict"]) == (one, "dead", 1, "idle")
    assert row["answer"].startswith("no report can be made from it: ")
    assert json.loads(row["report"])["SOPInstanceUIDs"] == ["\ud800"]
    assert json.loads(row["report"])["PatientID"] == BAD.patient_id
    (report,) = await after_restart(path)
    assert report.SOPInstanceUIDs == make_report("2").SOPInstanceUIDs


async def test_what_was_set_aside_is_made_anew_on_replay(path: Path, journal: Journal) -> None:
    await journal.keep(instances("1", "2", "3"))
    key = make_instance().key
    await journal.set_aside(key, make_report("1", "2").SOPInstanceUIDs or [], 4, "KeyError at collector.py:1")
    assert journal.open_instances == 1
    assert (await journal.last_dead(1))[0].Answer == "KeyError at collector.py:1"
    assert sorted(await journal.undelivered(key)) == make_report("1", "2").SOPInstanceUIDs
    (waiting,) = await journal.replay_dead(None)
    report = SeriesReport.model_validate_json(await journal.report(waiting) or "")
    assert (report.key, report.SOPInstanceUIDs) == (key, make_report("1", "2").SOPInstanceUIDs)
    assert (report.Revision, report.Verdict, waiting.instances) == (4, "idle", 2)
    assert (journal.waiting_instances, journal.dead_letters) == (2, 0)
    assert journal.revisions() == {key: 4}


async def test_a_folder_that_is_gone_for_a_while_refuses_images_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.journal.MEASURED_FOR_S", 0.0)
    folder, away = tmp_path / "disk", tmp_path / "away"
    folder.mkdir()
    async with Journal.open(folder / "journal.db", UNBOUNDED) as journal:
        folder.rename(away)
        assert "folder" in (journal.saturated() or "")
        away.rename(folder)
        assert journal.saturated() is None
