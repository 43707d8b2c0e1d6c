"""Rows of the journal that hold nonsense: each costs its own series at most, and none the start."""

import asyncio
import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from gateway import journal_rows as rows
from gateway.collector import SeriesCollector
from gateway.idle import Fixed
from gateway.journal import Journal
from gateway.journal_reader import read
from gateway.journal_rows import KEY, Waiting
from models import INSTANCE_KEYWORDS, MAX_DOUBT, SeriesKey, SeriesReport
from tests.rig.factories import RECEIVED_AT, SERIES, UNBOUNDED, collector_of, make_instance, make_report

BAD, GOOD = "1.2.1", "1.2.2"  # the series whose rows are made nonsense of, and the others'


async def _filled(path: Path) -> None:
    """A journal with two series open, two reports waiting, and two dead."""
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([make_instance(sop, series=series) for series in (BAD, GOOD) for sop in ("1", "2")])
        reports = [make_report("8", series=series) for series in (BAD, GOOD)]
        learnt = {("BAD", "CT", ""): "{}", ("GOOD", "CT", ""): "{}"}
        await journal.file_reports(reports, learnt, ["00-1-2-01", "00-1-2-01"], {"BAD": 1, "GOOD": 2})
        for waiting in await journal.file_reports([make_report("9", series=series) for series in (BAD, GOOD)]):
            await journal.refused(waiting, "HTTP 422")


@pytest.fixture(scope="module")
def filled() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.db")
        asyncio.run(_filled(path))
        yield path


@contextmanager
def spoilt(filled: Path, statement: str, *values: Any) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.db")
        path.write_bytes(filled.read_bytes())
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement, values)
        yield path


WHOSE = {
    "open_series": ("series_instance_uid", BAD),
    "instances": ("sop_instance_uid", f"{BAD}.1"),
    "reports": ("series_instance_uid", BAD),
    "learnt": ("calling_ae_title", "BAD"),
    "pacs": ("ae_title", "BAD"),
    "server": ("id", "1"),
}
COLUMNS = {
    "open_series": f"{KEY}, sop_class_uid, transfer_syntax_uid, calling_ae_title, peer_address, called_ae_title, "
    "content",
    "instances": "sop_instance_uid, received_at, attributes",
    "reports": f"{KEY}, revision, verdict, instances, report, attempts, next_attempt_at, answer, changed_at, "
    "reported_at, traceparent",
    "learnt": "calling_ae_title, modality, station, content",
    "pacs": "ae_title, trust",
    "server": "paused_until, probed_at",
}
PLACES = [(table, column) for table, columns in COLUMNS.items() for column in columns.split(", ")]
DEEP = "[" * 100_000
TEXTS = [
    *("", "null", "{}", "[]", "[1]", "[{}, 1]", '[{"PatientID": 5}, {}]', '[{"PatientID": [1]}, {}]', DEEP),
    *('[{"PatientID": ["P2"], "Modality": ["\\ud800"]}, {"Modality": "="}]', '[["a"], {}]', '["1", 2]', '["\\ud800"]'),
    *('{"SOPInstanceUIDs": 5}', '{"SOPInstanceUIDs": [null, 1, "\\ud800", []]}', "NaN", "Infinity", "9" * 5000, "abc"),
]
NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 0.5, -1e300, 1e300, 253402300800.0, -62135596801.0]
NONSENSE = (
    st.none()
    | st.sampled_from([float("inf"), float("-inf"), *NUMBERS])
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=50)
    | st.sampled_from(TEXTS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
)


def as_text(value: Any) -> tuple[str, Any]:
    """Bytes as text that is no UTF-8: what a lone surrogate becomes in SQLite, or a disk made of it."""
    return ("CAST(? AS TEXT)", value) if isinstance(value, bytes) else ("?", value)


async def _started(path: Path) -> tuple[list[str], list[SeriesKey]]:
    """Do all that a gateway does with its journal; what it would post, and what an operator can replay."""
    async with Journal.open(path, UNBOUNDED) as journal:
        collector: SeriesCollector = collector_of(Fixed(1), revisions=journal.revisions())
        journal.learnt(), journal.trust(), journal.paused_until(), journal.saturated()
        opened = []
        for instance in journal.replay():
            opened.append(instance.key)
            if instance.series_instance_uid == GOOD:
                collector.observe(instance, 0.0)
        posted = [await journal.report(waiting) for waiting in journal.waiting()]
        await journal.last_dead(10)
        for key in {*opened, *(waiting.key for waiting in journal.waiting())}:
            await journal.undelivered(key)
        await journal.keep([make_instance("7", series="1.3")])
        for key in opened:
            if key.series_instance_uid != GOOD:
                await journal.set_aside(key, [f"{BAD}.1", f"{BAD}.2"], 1, "a test")
        await journal.file_reports(collector.drain(0.0))
        for waiting in journal.waiting():
            await journal.delivered(waiting)
        replayed = await journal.replay_dead(None)
        await journal.discard_dead(None, "a test")
        assert journal.waiting_instances == sum(waiting.moved for waiting in replayed)
        return [text or "" for text in posted], [waiting.key for waiting in replayed]


@settings(max_examples=80, deadline=None)
@given(place=st.sampled_from(PLACES), value=NONSENSE, text=st.booleans())
@example(place=("open_series", "content"), value=DEEP, text=False)
@example(place=("instances", "attributes"), value=DEEP, text=False)
@example(place=("instances", "received_at"), value=float("inf"), text=False)
@example(place=("instances", "sop_instance_uid"), value=b"\xed\xa0\x80", text=True)
@example(place=("reports", "series_instance_uid"), value=b"\xff", text=True)
@example(place=("reports", "instances"), value=2**63 - 1, text=False)
@example(place=("reports", "revision"), value="abc", text=False)
@example(place=("reports", "report"), value=None, text=False)
@example(place=("reports", "report"), value='{"SOPInstanceUIDs": 5}', text=False)
@example(place=("reports", "changed_at"), value=1e300, text=False)
@example(place=("reports", "verdict"), value=None, text=False)
@example(place=("server", "paused_until"), value="abc", text=False)
def test_a_row_that_holds_nonsense_costs_its_own_series_at_most(
    filled: Path, place: tuple[str, str], value: Any, text: bool
) -> None:
    table, column = place
    by, whose = WHOSE[table]
    mark, value = as_text(value) if text else ("?", value)
    try:
        update = f"UPDATE {table} SET {column} = {mark} WHERE {by} = ?"  # noqa: S608 - of our own
        with spoilt(filled, update, value, whose) as path:
            posted, replayed = asyncio.run(_started(path))
            left = read(path, "SELECT state, series_instance_uid FROM reports")
    except sqlite3.IntegrityError:
        return  # SQLite does not let that happen
    assert make_report("8", series=GOOD).model_dump_json(exclude_none=True) in posted
    assert GOOD in {key.series_instance_uid for key in replayed}
    good = [row["state"] for row in left if row["series_instance_uid"] == GOOD]
    assert sorted(good) == ["delivered", "delivered", "waiting"]


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE open_series SET content = '[{\"Modality\": 5}, {}]' WHERE series_instance_uid = ?", "open_series"),
        ("UPDATE instances SET attributes = '5' WHERE sop_instance_uid LIKE ?||'%'", "open_series"),
    ],
)
async def test_a_series_whose_attributes_cannot_be_read_keeps_its_identity_and_is_said_once(
    filled: Path, statement: str, table: str
) -> None:
    with spoilt(filled, statement, BAD) as path, capture_logs() as logs:
        async with Journal.open(path, UNBOUNDED) as journal:
            found = [instance for instance in journal.replay() if instance.series_instance_uid == BAD]
            assert {instance.key for instance in found} == {make_instance(series=BAD).key}
            await journal.file_reports([make_report("1", "2", series=BAD)])
            assert journal.open_instances == 2  # the others'
    (entry,) = [entry for entry in logs if entry["event"] == "journal.unreadable"]
    assert (entry["table"], entry["row"]) == (table, 1)
    assert "TypeError at gateway/journal_rows.py:" in entry["reason"]


async def test_a_time_that_is_none_is_that_of_the_start(filled: Path) -> None:
    with spoilt(filled, "UPDATE instances SET received_at = 1e300 WHERE sop_instance_uid = ?", f"{BAD}.1") as path:
        async with Journal.open(path, UNBOUNDED) as journal:
            times = {i.sop_instance_uid: i.received_at.year for i in journal.replay()}
    assert times[f"{BAD}.1"] >= times[f"{GOOD}.1"] == 2026


async def test_a_dead_letter_that_no_heartbeat_can_name_does_not_hide_the_others(filled: Path) -> None:
    with spoilt(
        filled, "UPDATE reports SET series_instance_uid = 'Märked^Name' WHERE series_instance_uid = ?", BAD
    ) as p:
        async with Journal.open(p, UNBOUNDED) as journal:
            assert [dead.SeriesInstanceUID for dead in await journal.last_dead(20)] == [GOOD]
            assert journal.dead_letters == 2


async def test_words_that_are_too_long_for_a_heartbeat_are_cut(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", UNBOUNDED) as journal:
        (waiting,) = await journal.file_reports([make_report("1")])
        await journal.refused(waiting, "x\ud800" * 1000)
        (dead,) = await journal.last_dead(1)
    assert (dead.SeriesInstanceUID, len(dead.Answer)) == (SERIES, 256)


# --- each column by itself ---


@pytest.mark.parametrize(
    ("value", "read"),
    [("ab", "ab"), (None, ""), (7, "7"), (b"\xc3\xa4", "ä"), (b"\xed\xa0\x80", "\ud800"), (b"a\xff", "a\ufffd")],
)
def test_a_text_is_read_whatever_the_column_holds(value: Any, read: str) -> None:
    assert rows.text(value) == read


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *((0, 0), (5, 5), (-1, 0), (2**31 - 1, 2**31 - 1), (2**31, 2**31 - 1)),
        *((None, 0), ("5", 0), (5.5, 0)),
    ],
)
def test_a_count_is_brought_within_its_bounds(value: Any, read: int) -> None:
    assert rows.count(value) == read


def test_a_count_has_other_bounds_where_these_are_given() -> None:
    assert [rows.count(value, 9, 1) for value in (0, 1, 9, 10, None)] == [1, 1, 9, 9, 1]


@pytest.mark.parametrize(
    ("value", "read"), [(1, 1.0), (1.5, 1.5), (math.inf, 0.0), (math.nan, 0.0), ("1", 0.0), (None, 0.0)]
)
def test_seconds_are_a_finite_number(value: Any, read: float) -> None:
    assert rows.seconds(value) == read


@pytest.mark.parametrize("value", [None, "x", 1e300, math.nan, -1e300])
def test_a_time_that_cannot_be_one_is_another(value: Any) -> None:
    assert rows.point(value, RECEIVED_AT) == RECEIVED_AT
    assert rows.point(0.0, RECEIVED_AT) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", True),
        (f"00-{'a' * 33}-{'b' * 16}-01", False),
        ("00-a-b", False),
        (f"00-{'g' * 32}-{'b' * 16}-01", False),
        (None, False),
        (b"00-a-b-01", False),
    ],
)
def test_a_trace_is_one_or_none(value: Any, read: bool) -> None:
    assert rows.traceparent(value) == (value if read else None)


def test_what_sqlite_cannot_store_is_replaced_and_all_else_is_left() -> None:
    assert rows.storable("a\ud800") == "a?"
    assert rows.storable(b"\xff") == b"\xff"
    assert rows.storable(None) is None


@pytest.mark.parametrize("values", ["{}", '{"a": "b"}', '["1", 2]', "[[]]", '"text"', "7"])
def test_attributes_of_an_image_that_are_no_texts_are_none_of_its(values: str) -> None:
    with pytest.raises(TypeError):
        rows.own_attributes(values)


def test_attributes_of_an_image_are_those_that_have_a_value() -> None:
    assert rows.own_attributes(None) == rows.own_attributes("[]") == rows.own_attributes('[null, ""]') == {}
    assert rows.own_attributes('["1.2", null, "7"]') == {INSTANCE_KEYWORDS[0]: ("1.2",), INSTANCE_KEYWORDS[2]: ("7",)}
    assert len(rows.own_attributes(json.dumps(["1"] * 99))) == len(INSTANCE_KEYWORDS)  # of a newer version


def test_what_is_known_of_an_open_series_is_read_as_it_was_written() -> None:
    attributes, undecoded = {"Modality": ("CT",), "ImageType": ("A", "B")}, {"StudyID": b"\xff"}
    assert rows.unpack(rows.pack(attributes, undecoded, ("odd",))) == (attributes, undecoded, ("odd",))
    own = {INSTANCE_KEYWORDS[1]: ("7",)}
    assert rows.unpack(rows.pack(attributes | own, {INSTANCE_KEYWORDS[1]: b"7"}, ())) == (attributes, {}, ())
    assert rows.unpack("[{}, {}]") == ({}, {}, ())  # of an earlier version
    assert rows.unpack(json.dumps([{}, {}, ["x" * 9999, 7]]))[2] == ("x" * MAX_DOUBT,)
    for spoilt in ('[{"a": "b"}, {}, []]', '[{"a": [1]}, {}, []]'):
        with pytest.raises(TypeError):
            rows.unpack(spoilt)


def test_a_series_is_of_the_patient_that_it_is_collected_under() -> None:
    attributes = {"PatientID": ("A", "B"), "Modality": ("CT",)}
    assert rows.of_patient(attributes, "A\\B") is attributes
    assert rows.of_patient(attributes, "C") == attributes | {"PatientID": ("C",)}
    assert rows.of_patient(attributes, None) == {"Modality": ("CT",)}
    assert rows.of_patient({"Modality": ("CT",)}, None) == {"Modality": ("CT",)}
    assert rows.identity(attributes) == {"PatientID": ("A", "B")}
    assert rows.identity({"Modality": ("CT",)}) == {}


def test_why_no_report_can_be_made_names_fields_and_kinds_and_nothing_of_a_value() -> None:
    with pytest.raises(ValidationError) as raised:
        SeriesReport.model_validate({"SeriesInstanceUID": "Secret^Name \\", "NumInstances": "Secret", "Unknown": 1})
    reason = rows.why_unmade(raised.value)
    assert reason.startswith("no report can be made from it: ")
    assert "NumInstances: int_type" in reason
    assert "StudyInstanceUID: missing" in reason
    assert "; extra_forbidden" in reason  # a name that is none of ours is not told
    assert "Secret" not in reason
    assert "Unknown" not in reason
    assert rows.why_unmade(KeyError("Secret")) == "no report can be made from it: KeyError"


def test_what_no_report_can_be_made_of_keeps_its_identity() -> None:
    unmade = json.loads(rows.unmade(SeriesKey("1.2", "1.2.3", None), ["1.2.3.1", "1.2.3.2"], 3))
    assert unmade == {
        "SeriesInstanceUID": "1.2.3",
        "PatientID": None,
        "StudyInstanceUID": "1.2",
        "NumInstances": 2,
        "SOPInstanceUIDs": ["1.2.3.1", "1.2.3.2"],
        "Revision": 3,
        "Verdict": "idle",
    }
    made = rows.made(json.dumps(unmade))
    assert (made.key, made.NumInstances, made.Revision) == (SeriesKey("1.2", "1.2.3", None), 2, 3)


def test_only_what_left_the_log_counts_as_moved() -> None:
    whole = Waiting(1, SeriesKey("1.2", "1.2.3", None), 1, 5, 0, 0.0, 0.0)
    assert (whole.moved, replace(whole, part=True).moved) == (5, 0)
