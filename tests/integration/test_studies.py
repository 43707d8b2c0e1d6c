"""The rows of studies on both databases: they follow their series, get verdicts, and lose them again."""

import asyncio
import itertools
import random
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from common import metrics
from common.required import required_series
from common.settings import ServerSettings
from db import LOOKED_AT, Database
from models import FINAL_VERDICTS, Change, CountsOfStudy, GatewayState, SeriesReport
from storage import study_rules, study_silence
from storage.answers import StudyRecord
from storage.listing import StudyListing
from storage.orders import give
from storage.rows import StudyRow
from storage.schema import series, studies, study_sources
from storage.studies import Terms
from storage.study_declarations import DeclaredStudy
from storage.study_rules import COUNT_WAIT, DECLARED_WITHIN, TRUSTED_AFTER
from storage.study_silence import MAX_KINDS
from tests.rig.factories import STUDY, arriving, make_report, make_state
from tests.rig.migrating import downgrade
from tests.rig.serving import empty_database

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OTHER = f"{STUDY}.999"
BECAUSE = "the ward has called"


@pytest.fixture
def clock() -> Any:
    """The time that the server has; it stands still until it is shifted."""
    with time_machine.travel(NOW, tick=False) as travelled:
        yield travelled


def of(
    series: int, *sops: str, study: str = STUDY, verdict: str | None = "verified", ago_s: float = 0.0, **change: Any
) -> SeriesReport:
    """A report of one series, whose images have just come."""
    said = make_report(*sops, series=f"{study}.{series}", study=study).model_dump()
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    said |= {"FirstReceivedAt": at, "LastReceivedAt": at, "Source": "CT1 CT", "GatewayID": "one", "Verdict": verdict}
    if verdict == "verified":
        said |= {"ExpectedInstances": len(sops), "ExpectedFrom": "pacs"}
    return SeriesReport.model_validate(said | change)


def asked(series: int, *sops: str, has: tuple[int, int], ahead: bool = True, **change: Any) -> SeriesReport:
    """The same, with what its PACS has of the study."""
    now = datetime.now(UTC)
    details = {"PACS": "ORTHANC", "Count": len(sops), "Known": 0 if ahead else len(sops)}
    told: dict[str, Any] = {"Timeline": [{"At": now, "Event": "pacs.answered", "Details": details}]}
    return of(series, *sops, StudyCounts={"Series": has[0], "Instances": has[1], "At": now}, **told, **change)


def counts(series: int, images: int) -> CountsOfStudy:
    return CountsOfStudy(Series=series, Instances=images, At=datetime.now(UTC))


async def beat(database: Database, name: str = "one", *open_studies: str, **change: Any) -> list[Any]:
    """A heartbeat; what its answer orders."""
    said = make_state(name, OpenStudies=list(open_studies), **change)
    orders, _ = await database.heard(GatewayState.model_validate(said))
    return orders


async def record(database: Database, study: str = STUDY) -> StudyRecord:
    found = await database.study(study)
    assert found is not None
    return found


async def told(database: Database) -> list[Change]:
    return await database.changes(since=0, limit=1000, subject="study")


async def rows(database: Database, query: str) -> list[Any]:
    return [tuple(row.values()) for row in await database.engine.read(text(query))]


async def pass_silence(database: Database, clock: Any, study: str = STUDY, *, speaks: bool = True) -> None:
    """Let the time come at which a study is due next; the gateway has spoken all the time, or is silent."""
    query = text('SELECT "DueAt" AS at FROM studies WHERE "StudyInstanceUID" = :uid').columns()
    found = await database.engine.read(query.bindparams(uid=study))
    at = found[0]["at"]
    at = datetime.fromisoformat(at) if isinstance(at, str) else at
    clock.move_to(at.replace(tzinfo=UTC))
    if speaks:
        await beat(database)
    await database.decide_due()


# --- the row follows its series ---------------------------------------------------------------------------------


async def test_a_study_is_counted_from_its_series(database: Database) -> None:
    described = {"Modality": ["CT"], "StudyDescription": ["Chest"], "StudyTime": ["120000"], "StudyDate": ["20260601"]}
    await database.store(of(1, "1", "2", Attributes=described))
    await database.store(of(2, "1", verdict="capped", Attributes={"Modality": ["SR"]}))
    await database.store(of(3, "1", verdict="expected", ExpectedInstances=3, ExpectedFrom="tags"))
    study = await record(database)
    assert (study.NumSeries, study.NumInstances, study.Unsettled, study.Incomplete) == (3, 4, 1, 1)
    assert (study.Modalities, study.PatientID, study.StudyDescription) == (["CT", "SR"], "P1", "Chest")
    assert (study.StudyDate, study.StudyTime, study.Source) == ("20260601", "120000", "CT1 CT")
    assert (study.Verdict, study.Revision) == (None, 0)
    assert await database.studies(after=None, limit=9) == [study]
    assert await told(database) == []


def recounted(series: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the rows of studies have to say, from all series."""
    by_study: dict[str, dict[str, Any]] = {}
    for one in series:
        study = by_study.setdefault(one["StudyInstanceUID"], {"Verdicts": Counter(), "Modalities": Counter()})
        study["Verdicts"][one["Verdict"] or ""] += 1
        study["Modalities"][one["Modality"] or ""] += 1
        numbers = {"NumSeries": 1, "NumInstances": one["NumInstances"], "Contradicted": one["FalseCompletions"] > 0}
        numbers["Unsettled"] = one["Verdict"] not in FINAL_VERDICTS
        numbers["Incomplete"] = (one["ExpectedInstances"] or 0) > one["NumInstances"]
        for name, value in numbers.items():
            study[name] = study.get(name, 0) + value
    return by_study


async def compare(database: Database) -> None:
    """Hold the rows of studies against those of their series."""
    wanted = recounted(await database.engine.read(select(series)))
    found = {row["StudyInstanceUID"]: row for row in await database.engine.read(select(studies))}
    assert found.keys() == wanted.keys()
    for uid, study in wanted.items():
        assert {name: found[uid][name] for name in study} == study


OPERATION = st.tuples(
    st.sampled_from(["store", "store", "store", "conflict", "declare", "declare study", "count", "purge"]),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 7),
)


async def operate(database: Database, base: str, operations: list[tuple[str, int, int, int]]) -> None:
    """Do anything that changes series and studies; a number chooses what exactly."""
    verdicts = [None, "idle", "verified", "expected", "capped", "drained", "declared", "idle"]
    for what, study, one, number in operations:
        uid, series_uid = f"{base}.{study}", f"{base}.9.{one}"
        sops = [str(n) for n in range(number // 2 + 1)]
        report = of(one, *sops, study=uid, verdict=verdicts[number], Revision=1 + number % 3)
        report = report.model_copy(
            update={
                "SeriesInstanceUID": series_uid,
                "Attributes": {"Modality": ["CT", "MR", "SR"][number % 3 :][:1]},
                "StudyCounts": counts(1 + number % 2, number) if number > 4 else None,
            }
        )
        if what in ("store", "conflict"):
            await database.store(report)
        if what == "conflict":
            for conflict in await database.conflicts(after=None, limit=1, resolved=False):
                await database.resolve(conflict.Digest, ["correct", "merge", "dismiss"][number % 3], "me")  # type: ignore[arg-type]
        word: Any = "complete" if number % 2 else "incomplete"
        if what == "declare":
            await database.declare(series_uid, word, "me", BECAUSE)
        elif what == "declare study":
            await database.declare_study(uid, word, "me", BECAUSE)
        elif what == "count":
            await database.count_study(uid, counts(number % 4, number), "one")
        elif what == "purge":
            await database.last_change()
            before = datetime.now(UTC) + timedelta(days=1 if number < 4 else -1)
            await database.purger.series(before, None, dry=False)


@settings(max_examples=25)
@given(st.lists(st.lists(OPERATION, min_size=1, max_size=14), min_size=1, max_size=4))
def test_deltas_equal_a_recount_whatever_happens(rounds: list[list[tuple[str, int, int, int]]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            url = empty_database(folder)
            async with Database.open(ServerSettings(database_url=url)) as database:
                for number, operations in enumerate(rounds):
                    await operate(database, f"1.{number + 1}", operations)
                    await database.decide_due()
                    await compare(database)

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(3))
async def test_deltas_equal_a_recount_where_many_write_at_once(database: Database, seed: int) -> None:
    rng = random.Random(seed)
    kinds = ["store", "store", "store", "store", "conflict", "declare", "declare study", "count", "purge"]
    lists = [
        [(rng.choice(kinds), rng.randrange(3), rng.randrange(4), rng.randrange(8)) for _ in range(12)] for _ in range(6)
    ]
    due = asyncio.create_task(database.decide_due())
    await asyncio.gather(*(operate(database, "1.7", operations) for operations in lists), due)
    await compare(database)


@pytest.mark.peer("postgresql")
async def test_twenty_series_of_one_study_at_once_by_two_servers_are_counted_exactly(postgresql_url: str) -> None:
    patient = ServerSettings(database_url=postgresql_url, database_timeout_s=120)
    async with Database.open(patient) as one, Database.open(patient) as other:
        reports = [asked(n, "1", "2", has=(20, 40)) for n in range(20)]
        await asyncio.gather(*(db.store(report) for report, db in zip(reports, itertools.cycle((one, other)))))
        study = await record(one)
        assert (study.NumSeries, study.NumInstances, study.Unsettled) == (20, 40, 0)
        assert (study.ExpectedSeries, study.ExpectedInstances) == (20, 40)
        await compare(one)


async def test_a_first_series_that_gateways_report_at_once_is_counted_once(database: Database) -> None:
    reports = [of(1, "1", str(n), GatewayID=f"g{n}", verdict="idle") for n in range(2, 8)]
    await asyncio.gather(*(database.store(report) for report in reports))
    assert ((await record(database)).NumSeries, (await record(database)).NumInstances) == (1, 7)
    await compare(database)


async def test_a_series_that_claimed_too_much_leaves_nothing_of_that_when_it_is_purged(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1", verdict="idle"))
    claims = update(series).values(Verdict="verified")  # as an earlier version stored it
    await database.engine.write(lambda connection: connection.execute(claims))
    clock.shift(timedelta(hours=1))
    await database.store(of(2, "1", verdict="idle"))
    await database.last_change()
    await database.purger.series(datetime.now(UTC) - timedelta(minutes=1), None, dry=False)
    assert (await record(database)).NumSeries == 1
    await compare(database)


async def test_a_series_that_is_corrected_moves_to_its_study_and_an_empty_one_goes(database: Database) -> None:
    await database.store(of(1, "1"))
    await database.store(of(2, "1", "2", study="1.9"))
    moved = of(1, "1", "3", study="1.9").model_copy(update={"SeriesInstanceUID": f"{STUDY}.1", "PatientID": "P9"})
    await database.store(moved)
    (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
    await database.resolve(conflict.Digest, "correct", "me")
    assert await database.study(STUDY) is None
    study = await record(database, "1.9")
    assert (study.NumSeries, study.NumInstances, study.FalseCompletions) == (2, 5, 0)
    await compare(database)


async def test_a_study_goes_with_its_last_series(database: Database, clock: Any) -> None:
    await database.store(of(1, "1"))
    await database.store(of(2, "1", study="1.9"))
    clock.shift(timedelta(hours=1))
    await database.store(of(2, "1", "2"))
    await database.last_change()
    await database.purger.series(datetime.now(UTC) - timedelta(minutes=1), None, dry=False)
    assert await database.study("1.9") is None
    study = await record(database)
    assert (study.NumSeries, study.NumInstances) == (1, 2)
    await compare(database)


# --- verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_ours", ["decide", "learnt_of"], ids=["in the rules", "before them"])
async def test_a_study_that_cannot_be_decided_is_left_alone_and_keeps_no_other_waiting(
    database: Database, clock: Any, monkeypatch: pytest.MonkeyPatch, of_ours: str
) -> None:
    sound = getattr(study_rules, of_ours)

    def fails_for_one(row: StudyRow, *others: Any) -> Any:
        if row["StudyInstanceUID"] == STUDY:
            raise ZeroDivisionError
        return sound(row, *others)

    for study in (STUDY, OTHER):
        await database.store(of(1, "1", verdict="idle", study=study))
    with monkeypatch.context() as broken, capture_logs() as logged:
        broken.setattr(study_rules, of_ours, fails_for_one)
        await pass_silence(database, clock)
        assert await database.decide_due() == 0
    assert {line["study_instance_uid"] for line in logged if line["event"] == "study.failed"} == {STUDY}
    assert ((await record(database)).Verdict, (await record(database, OTHER)).Verdict) == (None, "idle")
    await pass_silence(database, clock)
    assert (await record(database)).Verdict == "idle"


async def test_a_report_is_stored_though_its_study_cannot_be_decided(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(study_rules, "decide")
    await database.store(of(1, "1", "2", verdict="idle"))
    assert ((await record(database)).NumInstances, (await record(database)).Verdict) == (2, None)


UNREADABLE: list[Any] = [
    None,
    [],
    "late",
    {"studies": "1"},
    {"groups": [1]},
    {"late": [[1, "x"]]},
    {"late": [[1, 60, 3, 0, ""]]},
]


@pytest.mark.parametrize("learnt", UNREADABLE, ids=repr)
async def test_what_was_learnt_and_cannot_be_read_is_learnt_again(database: Database, clock: Any, learnt: Any) -> None:
    await database.store(of(1, "1", verdict="idle"))
    await pass_silence(database, clock)
    change = update(study_sources).values(Learnt=learnt)
    await database.engine.write(lambda connection: connection.execute(change))
    with capture_logs() as logged:
        clock.shift(60)
        await database.store(of(2, "1", verdict="idle"))  # it has been silent: something is learnt
    assert "habits.unreadable" in {line["event"] for line in logged}
    clock.shift(7200)
    await beat(database)
    await database.decide_due()
    assert (await record(database)).NumSeries == 2


async def test_learnt_text_that_is_no_json_is_learnt_again(tmp_path: Path, clock: Any) -> None:
    """On SQLite; PostgreSQL keeps no other text as JSON."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'series.db'}"
    async with Database.open(ServerSettings(database_url=url)) as database:
        await _spoil(database, clock)


async def _spoil(database: Database, clock: Any) -> None:
    await database.store(of(1, "1", verdict="idle"))
    await pass_silence(database, clock)
    await database.engine.write(lambda one: one.execute(text("""UPDATE study_sources SET "Learnt" = '{'""")))
    clock.shift(60)
    await database.store(of(2, "1", verdict="idle"))
    assert (await record(database)).NumSeries == 2
    assert [study_silence.is_readable(one["Learnt"]) for one in await database.engine.read(select(study_sources))]


async def test_a_study_is_idle_once_its_source_was_silent_and_images_after_that_contradict(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1", verdict="idle"))
    await database.store(of(2, "1", verdict="idle"))
    assert await database.decide_due() == 0
    before = metrics.total(metrics.studies_told), metrics.total(metrics.study_false_completions)
    await pass_silence(database, clock)
    study = await record(database)
    assert (study.Verdict, study.Policy, study.Revision) == ("idle", "idle", 1)
    (change,) = await told(database)
    assert (change.Subject, change.StudyInstanceUID, change.SeriesInstanceUID) == ("study", STUDY, None)
    assert (change.Kinds, change.Verdict, change.Revision) == (["revised"], "idle", 1)
    assert (change.NumSeries, change.NumInstances) == (2, 2)
    assert await database.decide_due() == 0
    await database.store(of(1, "1", "2", verdict="idle", Revision=2))
    study = await record(database)
    assert (study.Verdict, study.FalseCompletions, study.Revision) == (None, 1, 2)
    assert (await told(database))[-1].Kinds == ["revised", "contradicted"]
    await pass_silence(database, clock)
    await pass_silence(database, clock)  # it has been learnt that silences are longer
    assert (await record(database)).Verdict == "idle"
    figures = await rows(database, 'SELECT "Source", "Policy", "Verdict", "Studies", "False" FROM study_completions')
    assert figures == [("CT1 CT", "idle", "idle", 2, 1)]
    after = metrics.total(metrics.studies_told), metrics.total(metrics.study_false_completions)
    assert (after[0] - before[0], after[1] - before[1]) == (2, 1)
    events = [event for event in await database.timeline(f"{STUDY}.1") if event.Event == "study.told"]
    assert [event.Details["Verdict"] for event in events] == ["idle", None, "idle"]


async def test_a_repeated_report_contradicts_nothing(database: Database, clock: Any) -> None:
    await database.store(of(1, "1", verdict="idle"))
    await pass_silence(database, clock)
    await database.store(of(1, "1", verdict="idle", Revision=2))
    await database.store(of(1, "1", Revision=3))  # verified: it is only better known
    study = await record(database)
    assert (study.Verdict, study.FalseCompletions, study.NumInstances) == ("idle", 0, 1)


async def test_the_pacs_is_asked_again_after_the_silence_and_verifies(database: Database, clock: Any) -> None:
    await beat(database, "one", STUDY)
    await database.store(asked(1, "1", has=(2, 3)))
    await database.store(asked(2, "1", "2", has=(2, 3)))
    assert await beat(database) == []
    assert (await record(database)).Verdict is None
    await pass_silence(database, clock)
    (order,) = await beat(database)
    assert (order.Kind, order.StudyInstanceUID, order.CallingAETitle) == ("count", STUDY, "ORTHANC")
    assert order.SeriesInstanceUID == f"{STUDY}.1"
    assert (await record(database)).Verdict is None
    answered = await database.count_study(STUDY, counts(2, 3), "one")
    assert answered is not None
    assert (answered.Verdict, answered.Policy) == ("verified", "verified")
    assert (await told(database))[-1].Kinds == ["revised", "verified"]
    assert await rows(database, 'SELECT "Trust" FROM study_pacs') == [(1,)]
    assert await database.count_study("9.9", counts(1, 1), "one") is None


async def test_a_pacs_that_does_not_answer_leaves_it_to_silence_and_may_verify_later(
    database: Database, clock: Any
) -> None:
    await database.store(asked(1, "1", has=(1, 1)))
    await pass_silence(database, clock, speaks=False)
    assert await beat(database) == []  # nothing waits for a gateway that is silent
    clock.shift(COUNT_WAIT)
    await database.decide_due()
    assert (await record(database)).Verdict == "idle"
    await database.count_study(STUDY, counts(1, 1), "one")
    assert (await record(database)).Verdict == "verified"
    assert [change.Verdict for change in await told(database)] == ["idle", "verified"]


async def test_what_the_pacs_has_more_takes_the_verdict_and_counts_as_nobodys_fault(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1"))
    await pass_silence(database, clock)
    assert (await record(database)).Verdict == "idle"
    await database.count_study(STUDY, counts(2, 9), "one")
    study = await record(database)
    assert (study.Verdict, study.FalseCompletions) == (None, 0)
    assert "2 series with 9 images" in (study.Basis or "")


async def earn_trust(database: Database, clock: Any, **change: Any) -> None:
    """Let a PACS hold as many studies whole from the start as make it trusted."""
    for n in range(TRUSTED_AFTER):
        uid = f"1.7.{n}"
        await database.store(asked(1, "1", study=uid, has=(1, 1), **change))
        await pass_silence(database, clock, uid)
        await database.count_study(uid, counts(1, 1), "one")
        assert (await record(database, uid)).Verdict == "verified"


@pytest.mark.parametrize(("earned", "other"), [("20260601", "20200101"), ("20200101", "20260601")])
async def test_a_pacs_is_trusted_with_all_its_stations_and_with_studies_of_an_earlier_day_by_themselves(
    database: Database, clock: Any, earned: str, other: str
) -> None:
    await earn_trust(database, clock, Attributes={"StudyDate": [earned]})
    station: dict[str, Any] = {"Source": "CT1 MR MR01"}
    await database.store(asked(1, "1", has=(1, 1), Attributes={"StudyDate": [earned]}, **station))
    await database.store(asked(1, "1", has=(1, 1), Attributes={"StudyDate": [other]}, study=OTHER, **station))
    assert ((await record(database)).Verdict, (await record(database, OTHER)).Verdict) == ("verified", None)


async def test_a_count_of_a_gateway_whose_clock_is_ahead_is_of_now(database: Database, clock: Any) -> None:
    """Else it would pass for one after the silence, and later ones for older than it."""
    ahead = datetime.now(UTC) + timedelta(days=300)
    said: dict[str, Any] = {"StudyCounts": {"Series": 1, "Instances": 1, "At": ahead}}
    await database.store(asked(1, "1", has=(1, 1)).model_copy(update={"StudyCounts": counts(1, 1)}))
    await database.store(of(1, "1", **said))
    await database.count_study(STUDY, CountsOfStudy(Series=1, Instances=1, At=ahead), "one")
    await beat(database)
    assert (await record(database)).Verdict is None
    clock.shift(1)
    await database.count_study(STUDY, counts(2, 9), "one")
    assert (await record(database)).ExpectedInstances == 9


async def test_what_is_returned_of_a_look_is_what_is_stored(database: Database, clock: Any) -> None:
    await database.store(of(1, "1", verdict="idle"))
    clock.shift(1)
    assert await database.count_study(STUDY, counts(2, 9), "one") == await record(database)
    clock.shift(7200)
    await beat(database)
    verified = await database.count_study(STUDY, counts(1, 1), "one")
    assert verified == await record(database)
    assert verified.Verdict == "idle"


async def test_a_pacs_that_had_less_when_the_first_image_came_is_told_idle_and_verified_two_hours_later(
    database: Database, clock: Any
) -> None:
    await earn_trust(database, clock)
    report = asked(1, "1", "2", has=(1, 2))
    first = report.Timeline[0].model_copy(update={"Details": {"PACS": "ORTHANC", "Count": 2, "Known": 1}})
    first.Details.update({"StudySeries": 1, "StudyInstances": 1})
    await database.store(report.model_copy(update={"Timeline": [first, *report.Timeline]}))
    assert (await record(database)).Verdict is None
    assert await rows(database, 'SELECT "Trust" FROM study_pacs') == [(0,)]
    await pass_silence(database, clock)
    await database.count_study(STUDY, counts(1, 2), "one")
    assert (await record(database)).Verdict == "idle"
    began = datetime.now(UTC)
    await pass_silence(database, clock)
    await database.count_study(STUDY, counts(1, 2), "one")
    assert (await record(database)).Verdict == "verified"
    assert datetime.now(UTC) - began > timedelta(hours=1)


async def test_a_trusted_pacs_verifies_with_the_last_report_and_loses_its_trust_when_it_was_wrong(
    database: Database, clock: Any
) -> None:
    await earn_trust(database, clock)
    open_series = {"Arriving": [arriving(f"{STUDY}.2", 1, StudyInstanceUID=STUDY)], "OpenSeries": 1}
    await beat(database, "one", STUDY, **open_series)
    await database.store(asked(1, "1", has=(2, 2)))
    assert (await record(database)).Verdict is None
    await database.store(asked(2, "1", has=(2, 2)))
    study = await record(database)
    assert (study.Verdict, study.Policy, study.Revision) == ("verified", "verified", 1)
    await database.store(asked(3, "1", has=(3, 3)))  # of which the count has grown: it is asked again, later
    assert ((await record(database)).Verdict, await rows(database, 'SELECT "Trust" FROM study_pacs')) == (
        None,
        [(0,)],
    )


async def test_another_open_series_of_the_same_gateway_keeps_the_verdict_away(database: Database, clock: Any) -> None:
    await earn_trust(database, clock)
    both = [arriving(f"{STUDY}.{n}", 1, StudyInstanceUID=STUDY) for n in (1, 2)]
    await beat(database, "one", STUDY, Arriving=both, OpenSeries=2)
    await database.store(asked(1, "1", has=(1, 1)))  # its PACS does not hold the other one
    assert (await record(database)).Verdict is None
    await beat(database, "one", STUDY, Arriving=both[:1], OpenSeries=2)  # it has more open than it names
    await database.store(asked(1, "1", has=(1, 1)))
    assert (await record(database)).Verdict is None
    await beat(database, "one")
    assert (await record(database)).Verdict == "verified"


# --- a part of it is purged -------------------------------------------------------------------------------------


async def purge_first(database: Database, clock: Any) -> None:
    """Let a study be verified whose PACS has three series, of which two are then purged."""
    await beat(database)
    for n in (1, 2, 3):
        await database.store(asked(n, *map(str, range(n)), has=(3, 6)))
    await pass_silence(database, clock)
    await database.count_study(STUDY, counts(3, 6), "one")
    assert (await record(database)).Verdict == "verified"
    clock.shift(timedelta(hours=1))
    await database.store(asked(3, "0", "1", "2", has=(3, 6), Revision=2, Attributes={"SeriesDescription": ["MPR"]}))
    await database.last_change()
    before = datetime.now(UTC) - timedelta(minutes=1)
    assert (await database.purger.series(before, None, dry=False)).series == 2


async def purge(database: Database, young: timedelta = timedelta(minutes=1)) -> int:
    """Purge what has not changed for longer than that; how many series that were."""
    await database.last_change()
    return (await database.purger.series(datetime.now(UTC) - young, None, dry=False)).series


async def events_of_study(database: Database) -> list[Any]:
    """What the study's timeline says of its verdict."""
    events = await database.study_views.events(STUDY, None, 999)
    return [(one["At"], one["Details"]) for one in events if one["Event"] == "study.told"]


async def places(database: Database) -> set[tuple[str, str]]:
    """Of what is told of studies, whose it is and at which series it stands."""
    told_of = """SELECT "StudyInstanceUID", "SeriesInstanceUID" FROM changes WHERE "Subject" = 'study'"""
    return set(await rows(database, told_of))


async def is_listed(database: Database) -> bool:
    """Whether the study is listed as incomplete."""
    return bool(await database.studies(after=None, limit=9, listing=StudyListing(Incomplete=True)))


async def test_what_is_purged_of_a_study_is_not_missing_and_takes_no_verdict(database: Database, clock: Any) -> None:
    await purge_first(database, clock)
    await beat(database)
    await database.store(asked(3, "0", "1", "2", has=(3, 6), Revision=3))  # a repeated report
    await database.count_study(STUDY, counts(3, 6), "one")
    study = await record(database)
    assert (study.Verdict, study.NumSeries, study.NumInstances, study.FalseCompletions) == ("verified", 1, 3, 0)
    assert (study.ExpectedSeries, study.ExpectedInstances, await is_listed(database)) == (1, 3, False)
    assert await database.study_views.incomplete_since(datetime.now(UTC)) is None
    await compare(database)


async def test_what_comes_to_a_study_that_was_purged_in_part_is_verified_again(database: Database, clock: Any) -> None:
    await purge_first(database, clock)
    await database.store(asked(4, "1", has=(4, 7)))
    assert ((await record(database)).Verdict, await is_listed(database)) == (None, False)
    for told_as in ("idle", "verified"):  # its count has grown: it is believed two hours after
        await pass_silence(database, clock)
        await database.count_study(STUDY, counts(4, 7), "one")
        assert (await record(database)).Verdict == told_as
    study = await record(database)
    assert (study.Verdict, study.FalseCompletions, study.ExpectedInstances) == ("verified", 1, 4)


async def test_a_purged_series_that_comes_again_contradicts_its_study_only_with_more(
    database: Database, clock: Any
) -> None:
    await purge_first(database, clock)
    await database.store(asked(1, "0", has=(3, 6)))
    await database.store(asked(2, "0", "1", has=(3, 6)))
    study = await record(database)
    assert (study.Verdict, study.NumSeries, study.FalseCompletions) == ("verified", 3, 0)
    assert (study.ExpectedSeries, study.ExpectedInstances) == (3, 6)
    await purge_again(database, clock)
    await database.store(asked(2, "0", "1", "2", has=(3, 7)))
    study = await record(database)
    assert (study.Verdict, study.FalseCompletions, study.ExpectedInstances) == (None, 1, 6)
    await compare(database)


async def test_what_was_told_of_a_study_stays_when_the_series_goes_at_which_it_stands(
    database: Database, clock: Any
) -> None:
    await beat(database)
    for n in (1, 2, 3):
        await database.store(asked(n, *map(str, range(n)), has=(3, 6)))
    await pass_silence(database, clock)
    await database.count_study(STUDY, counts(3, 6), "one")
    before, events = await told(database), await events_of_study(database)
    assert await places(database) == {(STUDY, f"{STUDY}.1")}
    clock.shift(timedelta(hours=1))
    await database.store(asked(3, "0", "1", "2", has=(3, 6), Revision=2, Attributes={"SeriesDescription": ["MPR"]}))
    assert await purge(database) == 2
    assert [one.Number for one in await told(database)][: len(before)] == [one.Number for one in before]
    assert await places(database) == {(STUDY, f"{STUDY}.3")}
    assert (await events_of_study(database))[: len(events)] == events != []
    clock.shift(timedelta(hours=1))
    assert await purge(database) == 1
    assert (await told(database), await database.study(STUDY)) == ([], None)


async def test_what_was_told_of_a_study_stays_where_a_series_that_has_left_it_is_purged(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1"))
    await database.store(of(2, "1"))
    await declare(database, clock, "complete")
    assert await places(database) == {(STUDY, f"{STUDY}.1")}
    moved = of(1, "1", "3", study="1.9").model_copy(update={"SeriesInstanceUID": f"{STUDY}.1", "PatientID": "P9"})
    await database.store(moved)
    (conflict,) = await database.conflicts(after=None, limit=9, resolved=False)
    await database.resolve(conflict.Digest, "correct", "me")
    clock.shift(timedelta(hours=1))
    await database.store(of(2, "1", Revision=2, Attributes={"SeriesDescription": ["MPR"]}))
    assert await purge(database) == 1
    assert (STUDY, f"{STUDY}.2") in await places(database)


async def test_a_study_whose_only_open_series_is_purged_is_decided(database: Database, clock: Any) -> None:
    patient = site(database, study_max_open_s=30 * 86400)
    await patient.store(of(1, "1", verdict=None))
    clock.shift(timedelta(hours=3))
    await patient.store(of(2, "1", verdict="idle"))
    clock.shift(timedelta(hours=3))
    await patient.decide_due()
    assert (await record(patient)).Verdict is None
    assert await purge(patient, timedelta(hours=4)) == 1
    await patient.decide_due()
    await pass_silence(patient, clock)
    study = await record(patient)
    assert (study.Verdict, study.NumSeries, datetime.now(UTC) < NOW + timedelta(days=1)) == ("idle", 1, True)


async def test_a_study_that_was_purged_whole_and_comes_again_in_part_lacks_nothing(
    database: Database, clock: Any
) -> None:
    for n in (1, 2, 3):
        await database.store(asked(n, *map(str, range(n)), has=(3, 6)))
    clock.shift(timedelta(hours=1))
    assert await purge(database) == 3
    for known, (n, series_left, images_left) in enumerate([(2, 1, 2), (4, 2, 3), (1, 3, 4)]):
        await database.store(asked(n, *map(str, range(1 if n == 4 else n)), has=(4 if known else 3, 7 if known else 6)))
        study = await record(database)
        assert (study.NumSeries, study.NumInstances) == (series_left, images_left)
        assert (study.ExpectedSeries, study.ExpectedInstances) == (series_left, images_left)
    assert not await is_listed(database)
    await compare(database)


async def test_another_gateway_asks_where_the_one_that_asked_has_stopped_or_is_gone(
    database: Database, clock: Any
) -> None:
    await beat(database, "one")
    await database.store(asked(1, "1", has=(1, 1)))
    await beat(database, "one", Stopped=True)
    clock.shift(timedelta(hours=1))
    await beat(database, "three", Stopped=True)
    await database.decide_due()
    assert await rows(database, 'SELECT "GatewayID" FROM orders') == []
    await beat(database, "two")
    await database.engine.write(lambda connection: connection.execute(update(studies).values(DueAt=NOW)))
    await database.decide_due()
    assert [(one.Kind, one.CallingAETitle) for one in await beat(database, "two")] == [("count", "ORTHANC")]
    await database.count_study(STUDY, counts(1, 1), "two")
    assert (await record(database)).Verdict == "verified"


async def test_a_required_series_that_is_purged_is_not_missing_and_decides_nothing(
    database: Database, clock: Any
) -> None:
    demanding = site(database, required_series="*:*=Thorax|MPR")
    await beat(demanding)
    described: list[dict[str, Any]] = [{"Attributes": {"SeriesDescription": [text]}} for text in ("Thorax", "MPR")]
    await demanding.store(of(1, "1", verdict="idle", **described[0]))
    await demanding.store(of(2, "1", verdict="idle", **described[1]))
    await demanding.decide_due()
    assert (await record(demanding)).Policy == "expected"
    clock.shift(timedelta(hours=1))
    await demanding.store(of(2, "1", verdict="idle", Attributes={"ProtocolName": ["MPR"]}, Revision=2))
    await demanding.last_change()
    await demanding.purger.series(datetime.now(UTC) - timedelta(minutes=1), None, dry=False)
    await beat(demanding)
    await demanding.count_study(STUDY, counts(2, 2), "one")
    study = await record(demanding)
    assert (study.Policy, study.MissingSeries, await is_listed(demanding)) == ("expected", [], False)
    await demanding.store(of(3, "1", verdict="idle"))
    await demanding.decide_due()
    assert ((await record(demanding)).Verdict, (await record(demanding)).MissingSeries) == (None, [])
    await pass_silence(demanding, clock)
    await demanding.decide_due()
    assert (await record(demanding)).Policy != "expected"


async def purge_again(database: Database, clock: Any) -> None:
    """Let all but the third series be purged once more."""
    clock.shift(timedelta(hours=1))
    await database.declare(f"{STUDY}.3", "incomplete", "me", BECAUSE)
    await database.store(asked(3, "0", "1", "2", has=(3, 6), Revision=9))
    await database.last_change()
    before = datetime.now(UTC) - timedelta(minutes=1)
    assert (await database.purger.series(before, None, dry=False)).series == 2


# --- gateways that hold it --------------------------------------------------------------------------------------


async def test_a_gateway_that_names_it_keeps_it_open_and_lets_it_go_with_a_heartbeat(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1", ago_s=7200))
    await beat(database, "two", STUDY, OpenSeries=1)
    await database.decide_due()
    study = await record(database)
    assert study.Verdict is None
    assert "gateway two" in (study.Basis or "")
    await beat(database, "two")
    assert (await record(database)).Verdict == "idle"


async def test_what_one_heartbeat_lets_go_is_decided_however_much_it_is(database: Database, clock: Any) -> None:
    uids = [f"1.7.{n}" for n in range(LOOKED_AT + 5)]
    for uid in uids:
        await database.store(of(1, "1", study=uid, ago_s=7200))
    await beat(database, "two", *uids, OpenSeries=len(uids))
    await database.decide_due()
    assert await told(database) == []
    await beat(database, "two")
    assert len(await told(database)) == LOOKED_AT
    assert await database.decide_due() == 5
    assert {change.StudyInstanceUID for change in await told(database)} == set(uids)


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        ({"OpenStudies": ["9.9"], "OpenSeries": 1}, True),  # silent: what has come since is not known
        ({"OpenStudies": []}, False),
        ({"OpenStudies": ["9.9"], "OpenSeries": 1, "Stopped": True}, False),
        ({"OpenStudies": None, "UndeliveredReports": 1200, "Stopped": True}, True),
        ({"OpenStudies": None, "InboxInstances": 3}, True),
        ({"OpenStudies": None}, False),
    ],
)
async def test_a_silent_gateway_may_hold_what_began_before_it_fell_silent(
    database: Database, clock: Any, said: dict[str, Any], holds: bool
) -> None:
    await database.heard(GatewayState.model_validate(make_state("two", **said)))
    clock.shift(timedelta(seconds=30))
    await database.store(of(1, "1", ago_s=7200))
    await database.decide_due()
    study = await record(database)
    assert (study.Verdict is None) == holds
    assert ("gateway two" in (study.Basis or "")) == holds
    clock.shift(timedelta(hours=23))
    await database.decide_due()
    assert ((await record(database)).Verdict is None) == holds
    clock.shift(timedelta(hours=2))
    await beat(database)  # the other one is forgotten, after a day
    await database.decide_due()
    assert (await record(database)).Verdict in ("idle", "capped")


async def test_a_heartbeat_that_was_overtaken_frees_no_study(database: Database, clock: Any) -> None:
    overtaken = make_state("two", OpenStudies=[])
    clock.shift(timedelta(seconds=5))
    await database.store(of(1, "1", ago_s=7200))
    await beat(database, "two", STUDY, StartedAt=overtaken["StartedAt"], OpenSeries=1)
    await database.heard(GatewayState.model_validate(overtaken))
    await database.decide_due()
    assert await told(database) == []
    long_ago = datetime.fromisoformat(overtaken["At"]) - timedelta(minutes=2)  # no request takes that: a clock set back
    await database.heard(GatewayState.model_validate(overtaken | {"At": long_ago}))
    clock.shift(timedelta(hours=1))
    await beat(database, "two", At=(datetime.now(UTC) - timedelta(minutes=2)).isoformat())
    await database.decide_due()
    assert len(await told(database)) == 1


async def test_all_gateways_that_have_not_stopped_are_heard(database: Database, clock: Any) -> None:
    since = datetime.now(UTC)
    assert await database.heartbeats.have_spoken(since)
    await beat(database, "one")
    await beat(database, "two", Stopped=True)
    assert await database.heartbeats.have_spoken(since)
    assert not await database.heartbeats.have_spoken(since + timedelta(seconds=1))
    await beat(database, "one", Stopped=True)
    assert await database.heartbeats.have_spoken(since + timedelta(seconds=1))


# --- what is required, and for how long at most -----------------------------------------------------------------


def site(database: Database, **change: Any) -> Database:
    """The same database, as a server with other settings sees it."""
    given = ServerSettings(**change)
    terms = Terms(timedelta(seconds=given.study_max_open_s), required_series(given.required_series))
    return Database(database.engine, terms)


async def declare(database: Database, clock: Any, word: Any, study: str = STUDY) -> DeclaredStudy | None:
    """A person's word, some time after what was before."""
    clock.shift(timedelta(seconds=1))
    return await database.declare_study(study, word, "me", BECAUSE)


async def test_a_required_series_is_waited_for_and_then_decides(database: Database, clock: Any) -> None:
    demanding = site(database, required_series="CT1*:Chest*=Thorax 1.0|MPR*")
    first = {"StudyDescription": ["Chest"], "SeriesDescription": ["Thorax 1.0"]}
    tag: dict[str, Any] = {"verdict": "expected", "ExpectedInstances": 1, "ExpectedFrom": "tags"}
    await demanding.store(of(1, "1", Attributes=first, ago_s=7200, **tag))
    await demanding.decide_due()
    study = await record(demanding)
    assert (study.Verdict, study.MissingSeries) == (None, ["MPR*"])
    await demanding.store(of(2, "1", Attributes={"SeriesDescription": ["mpr cor"]}, **tag))
    await demanding.decide_due()
    study = await record(demanding)
    assert (study.Verdict, study.Policy, study.MissingSeries) == ("expected", "expected", [])


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
async def test_what_is_required_does_not_depend_on_which_series_came_first(
    database: Database, clock: Any, order: tuple[int, ...]
) -> None:
    demanding = site(database, required_series="CT1*:Chest*=Thorax 1.0|MPR*")
    described: dict[int, dict[str, Any]] = {
        1: {"Attributes": {"SeriesDescription": ["Thorax 1.0"], "StudyDescription": ["Chest"]}},
        2: {"Attributes": {"SeriesDescription": ["Dose"]}, "Source": "DOSE SR"},
        3: {"Attributes": {"SeriesDescription": ["Key images"], "StudyDescription": ["Other"]}, "Source": "WS KO"},
    }
    for n in order:
        await demanding.store(of(n, "1", verdict="idle", ago_s=7200, **described[n]))
        await demanding.decide_due()
    await demanding.decide_due()
    study = await record(demanding)
    assert (study.Verdict, study.MissingSeries) == (None, ["MPR*"])


async def test_a_study_that_stays_open_is_capped(database: Database, clock: Any) -> None:
    impatient = site(database, study_max_open_s=600)
    await impatient.store(of(1, "1", verdict="capped"))
    await impatient.decide_due()
    assert (await record(impatient)).Verdict is None
    await pass_silence(impatient, clock)
    study = await record(impatient)
    assert (study.Verdict, datetime.now(UTC)) == ("capped", NOW + timedelta(seconds=600))
    await impatient.store(of(1, "1", "2", verdict="capped", Revision=2))
    assert ((await record(impatient)).Verdict, (await record(impatient)).FalseCompletions) == ("capped", 0)
    await impatient.store(of(1, "1", "2", "3", verdict="idle", Revision=3))
    await pass_silence(impatient, clock)
    assert (await record(impatient)).Verdict == "idle"


# --- a person's word --------------------------------------------------------------------------------------------


async def test_a_study_that_nobody_holds_is_declared_at_once(database: Database, clock: Any) -> None:
    await database.store(of(1, "1", verdict="capped"))
    done = await declare(database, clock, "complete")
    assert done is not None
    assert (done.record, done.changed, done.closing) == (await record(database), True, [])
    assert (done.record.Verdict, done.record.Basis) == ("declared", f"declared complete by me: {BECAUSE}")
    assert (await told(database))[-1].Kinds == ["revised", "declared"]
    again = await declare(database, clock, "complete")
    assert again is not None
    assert not again.changed
    taken = await declare(database, clock, "incomplete")
    assert taken is not None
    assert (taken.record.Verdict, taken.record.Withdrawn) == (None, "declared")
    clock.shift(timedelta(days=3))
    await database.decide_due()
    assert (await record(database)).Verdict is None
    assert await declare(database, clock, "complete", "9.9") is None


async def test_gateways_are_told_to_close_what_they_have_open_of_a_declared_study(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1"))
    open_series = {"Arriving": [arriving(f"{STUDY}.2", 1, StudyInstanceUID=STUDY)], "OpenSeries": 1}
    await beat(database, "one", STUDY, **open_series)
    done = await declare(database, clock, "complete")
    assert done is not None
    assert (done.changed, done.closing, done.record.Verdict) == (True, ["one"], None)
    (order,) = await beat(database, "one", STUDY, **open_series)
    assert (order.Kind, order.SeriesInstanceUID) == ("declare", f"{STUDY}.2")
    await database.store(of(2, "1", verdict="declared", Revision=1))
    await beat(database, "one", OrdersDone=[{"Number": order.Number, "Problem": None}])
    study = await record(database)
    assert (study.Verdict, study.NumSeries, study.FalseCompletions) == ("declared", 2, 0)


async def test_a_gateway_that_does_not_answer_holds_a_declaration_up_for_a_while(
    database: Database, clock: Any
) -> None:
    await database.store(of(1, "1"))
    await beat(database, "one", STUDY, OpenSeries=1)
    await declare(database, clock, "complete")
    clock.shift(timedelta(seconds=1))
    await database.declare(f"{STUDY}.1", "incomplete", "me", BECAUSE)  # which makes no haste
    await database.decide_due()
    assert (await record(database)).Verdict is None
    clock.shift(DECLARED_WITHIN)
    await database.decide_due()
    assert (await record(database)).Verdict == "declared"


async def test_incomplete_takes_orders_back_and_leaves_those_for_one_series(database: Database, clock: Any) -> None:
    await database.store(of(1, "1"))
    open_series = {"Arriving": [arriving(f"{STUDY}.2", 1, StudyInstanceUID=STUDY)], "OpenSeries": 1}
    await beat(database, "one", STUDY, **open_series)
    await declare(database, clock, "complete")
    assert len(await beat(database, "one", STUDY, **open_series)) == 1
    done = await declare(database, clock, "incomplete")
    assert done is not None
    assert (done.record.Verdict, done.record.Withdrawn) == (None, "part")
    assert await beat(database, "one", STUDY, **open_series) == []


async def test_a_word_about_a_series_is_none_about_its_declared_study(database: Database, clock: Any) -> None:
    await database.store(of(1, "1", ago_s=60))
    await declare(database, clock, "complete")
    assert (await record(database)).Verdict == "declared"
    clock.shift(timedelta(hours=2))
    await database.store(of(2, "1", verdict="declared"))
    study = await record(database)
    assert (study.Verdict, study.FalseCompletions) == (None, 1)


async def test_a_series_that_is_declared_incomplete_takes_its_studys_verdict(database: Database, clock: Any) -> None:
    await database.store(of(1, "1"))
    await pass_silence(database, clock)
    assert (await record(database)).Verdict == "idle"
    await database.declare(f"{STUDY}.1", "incomplete", "me", BECAUSE)
    await database.decide_due()
    study = await record(database)
    assert (study.Verdict, study.Unsettled, study.FalseCompletions) == (None, 1, 0)


async def test_a_declared_study_is_not_listed_as_incomplete(database: Database, clock: Any) -> None:
    await database.store(asked(1, "1", has=(3, 40)))
    assert await is_listed(database)
    assert await database.study_views.incomplete_since(datetime.now(UTC)) is not None
    await declare(database, clock, "complete")
    assert not await is_listed(database)
    assert await database.study_views.incomplete_since(datetime.now(UTC)) is None
    assert await database.studies(after=None, limit=9, listing=StudyListing(Incomplete=False))
    await declare(database, clock, "incomplete")
    assert await is_listed(database)


async def test_the_pacs_of_a_study_that_is_declared_incomplete_is_asked_and_has_to_say_something_new(
    database: Database, clock: Any
) -> None:
    await database.store(asked(1, "1", has=(1, 1)))
    await pass_silence(database, clock)
    await database.count_study(STUDY, counts(1, 1), "one")
    assert (await record(database)).Verdict == "verified"
    await declare(database, clock, "incomplete")
    for _ in range(3):
        clock.shift(3600)
        await beat(database)
        await database.decide_due()
        orders = [one for one in await beat(database) if one.Kind == "count"]
        assert [one.StudyInstanceUID for one in orders] == [STUDY]
        await database.count_study(STUDY, counts(1, 1), "one")
        await beat(database, OrdersDone=[{"Number": one.Number, "Problem": None} for one in orders])
        assert ((await record(database)).Verdict, (await record(database)).Withdrawn) == (None, "verified")
    await database.count_study(STUDY, counts(2, 2), "one")  # the person was right
    clock.shift(600)
    await database.count_study(STUDY, counts(1, 1), "one")
    study = await record(database)
    assert (study.Verdict, study.Withdrawn, study.FalseCompletions) == ("verified", None, 0)


async def test_images_end_a_persons_word_that_a_study_is_incomplete(database: Database, clock: Any) -> None:
    await database.store(asked(1, "1", has=(1, 1)))
    await declare(database, clock, "incomplete")
    clock.shift(3)
    await database.store(asked(2, "1", has=(2, 2)))
    assert (await record(database)).Withdrawn is None
    await pass_silence(database, clock)
    await database.count_study(STUDY, counts(2, 2), "one")
    assert (await record(database)).Verdict in ("idle", "verified")


# --- clocks that are wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind_s", [1200, -1200, 90_000])
async def test_a_gateways_clock_shortens_and_lengthens_no_silence(
    database: Database, clock: Any, behind_s: float
) -> None:
    async def says(**change: Any) -> None:
        await beat(database, At=(datetime.now(UTC) - timedelta(seconds=behind_s)).isoformat(), **change)

    def at() -> datetime:
        return datetime.now(UTC) - timedelta(seconds=behind_s)

    await says()
    said: dict[str, Any] = {"Series": 1, "Instances": 1}
    report = asked(1, "1", has=(1, 1), ago_s=behind_s)
    told = {"StudyCounts": CountsOfStudy(**said, At=at())}
    await database.store(report.model_copy(update=told))
    study = await record(database)
    assert (study.FirstReceivedAt, study.LastReceivedAt) == (NOW, NOW)
    clock.shift(study_silence.PRIOR_S - 1)
    await says()
    await database.count_study(STUDY, CountsOfStudy(**said, At=at()), "one")
    assert (await record(database)).Verdict is None
    clock.shift(1)
    await says()
    await database.count_study(STUDY, CountsOfStudy(**said, At=at()), "one")
    assert (await record(database)).Verdict == "verified"
    learnt = await rows(database, 'SELECT "Learnt" FROM study_sources')
    clock.shift(600)
    await database.store(of(2, "1", ago_s=behind_s))
    (after,) = [one["Learnt"] for one in await database.engine.read(select(study_sources))]
    assert (len(learnt), [silence for _, silence, *_ in after["late"]]) == (1, [study_silence.PRIOR_S + 600])


async def test_a_clock_is_taken_to_be_right_if_it_differs_by_no_more_than_a_heartbeat_may_take(
    database: Database, clock: Any
) -> None:
    await beat(database, At=(NOW - timedelta(seconds=4)).isoformat())
    await database.store(of(1, "1", ago_s=4))
    assert (await record(database)).LastReceivedAt == NOW - timedelta(seconds=4)


# --- numbers that are missing -----------------------------------------------------------------------------------


async def test_a_gap_in_numbers_is_told_and_filled(database: Database, clock: Any) -> None:
    def numbered(*numbers: int, revision: int = 1) -> SeriesReport:
        told: dict[str, Any] = {
            "InstanceAttributes": {"InstanceNumber": [str(n) for n in numbers]},
            "Revision": revision,
        }
        return of(1, *map(str, numbers), verdict="idle", **told)

    await database.store(numbered(*range(1, 21), *range(23, 31)))
    assert (await record(database)).Gaps == {f"{STUDY}.1": "21 to 22 missing?"}
    (event,) = [event for event in await database.timeline(f"{STUDY}.1") if event.Event == "series.gapped"]
    assert event.Details == {"Numbers": "21 to 22 missing?"}
    await pass_silence(database, clock)
    study = await record(database)
    assert (study.Verdict, "21 to 22 missing?" in (study.Basis or "")) == ("idle", True)
    await database.store(numbered(21, revision=2))
    assert (await record(database)).Gaps == {f"{STUDY}.1": "22 missing?"}
    await database.store(numbered(22, revision=3))
    assert (await record(database)).Gaps == {}


# --- what was stored before -------------------------------------------------------------------------------------


async def test_studies_of_an_earlier_version_are_filled_from_their_series(database_url: str) -> None:
    given = ServerSettings(database_url=database_url)
    async with Database.open(given) as database:
        for n in range(5):
            described = {"Modality": [("CT", "MR")[n % 2]], "StudyDescription": ["Chest"]}
            await database.store(of(n, *map(str, range(n + 1)), Attributes=described))
        await database.store(of(1, "1", study="1.9", verdict="capped"))
        old = of(1, "1", study="1.8", ago_s=90_000)
        await database.store(old)
        await database.store(of(1, "1", study="1.7", verdict="capped", ago_s=90_000))
        before = {study.StudyInstanceUID: study for study in await database.studies(after=None, limit=9)}
        await pass_count_order(database)
        await downgrade(database_url, "0015")
        orders = await rows(database, 'SELECT "Kind", "DoneAt" IS NULL, "Problem" FROM orders')
        assert orders == [("declare", False, "not known any more")]
    async with Database.open(given) as database:
        await compare(database)
        after = {study.StudyInstanceUID: study for study in await database.studies(after=None, limit=9)}
        same = {"NumSeries", "NumInstances", "Modalities", "Unsettled", "StudyDescription", "PatientID", "Source"}
        same |= {"FirstReceivedAt", "LastReceivedAt", "PatientName"}
        assert {u: s.model_dump(include=same) for u, s in after.items()} == {
            u: s.model_dump(include=same) for u, s in before.items()
        }
        assert [after[uid].Verdict for uid in (STUDY, "1.9", "1.8", "1.7")] == [None, None, "idle", "capped"]
        assert await told(database) == []
        await database.store(of(2, "1", study="1.8"))
        assert (await record(database, "1.8")).FalseCompletions == 1


async def kinds_of(database: Database) -> dict[str, set[str]]:
    """What is known of the kinds of each study's series."""
    return {row["StudyInstanceUID"]: {*row["Kinds"]} for row in await database.engine.read(select(studies))}


async def test_studies_that_were_filled_without_kinds_get_those_of_their_series(database_url: str) -> None:
    given = ServerSettings(database_url=database_url)
    async with Database.open(given) as database:
        for n in range(80):
            described = {"Modality": ["CT"], "SeriesDescription": [f"Thorax {chr(97 + n // 9)}{chr(97 + n % 9)} 1.5"]}
            await database.store(of(n, "1", Attributes=described, ago_s=n))
        said = [{"Modality": ["SR"]}, {}, {"SeriesDescription": ["MÄü\ufffd 3.0 T2"], "Modality": ["MRXYZ"]}]
        for n, described in enumerate(said):
            await database.store(of(n, "1", study=OTHER, Attributes=described))
        new = await kinds_of(database)
        await database.engine.write(lambda one: one.execute(update(studies).values(Kinds=[])))
        await downgrade(database_url, "0016")
    async with Database.open(given) as database:
        filled = await kinds_of(database)
        assert filled[OTHER] == new[OTHER]
        assert len(filled[STUDY]) == len(new[STUDY]) == MAX_KINDS
        assert await rows(database, "SELECT * FROM study_pacs") == []


async def test_what_is_learnt_of_an_upgraded_study_is_learnt_of_its_kinds(database_url: str, clock: Any) -> None:
    given = ServerSettings(database_url=database_url)
    async with Database.open(given) as database:
        await database.store(of(1, "1", verdict="idle", Attributes={"SeriesDescription": ["Thorax"]}))
        await database.store(of(2, "1", verdict="idle", Attributes={"SeriesDescription": ["MPR"]}))
        await downgrade(database_url, "0015")
    async with Database.open(given) as database:
        clock.shift(600)
        await database.store(of(3, "1", verdict="idle", Attributes={"SeriesDescription": ["MPR"]}))
        (learnt,) = [one["Learnt"] for one in await database.engine.read(select(study_sources))]
        assert [again for *_, again, _ in learnt["late"]] == [1]
        await pass_silence(site(database, required_series="*:*=MPR|Thorax"), clock)
        assert ((await record(database)).Verdict, (await record(database)).Policy) == ("idle", "expected")


async def pass_count_order(database: Database) -> None:
    """Give an order that an earlier version does not know."""
    about = {"SeriesInstanceUID": f"{STUDY}.1", "StudyInstanceUID": STUDY, "CallingAETitle": "ORTHANC"}
    what: dict[str, Any] = {"by": "the server", "because": None, "now": datetime.now(UTC)}
    await database.engine.write(lambda connection: give(connection, "one", "count", about, **what))


async def test_what_an_older_server_has_stored_meanwhile_is_counted_when_it_changes(database: Database) -> None:
    await database.store(of(1, "1"))
    await database.store(of(2, "1"))
    await database.engine.write(lambda connection: connection.execute(text("DELETE FROM studies")))
    await database.store(of(2, "1", "2", Revision=2))
    await compare(database)


# --- a server that runs -----------------------------------------------------------------------------------------


async def test_a_running_server_decides_what_is_due(http: httpx.AsyncClient) -> None:
    report = of(1, "1", verdict="idle", ago_s=7200)
    answer = await http.post("/series", json=report.model_dump(mode="json"))
    assert answer.status_code == 201
    async with asyncio.timeout(20):
        while not (found := (await http.get("/changes", params={"subject": "study"})).json()["changes"]):
            await http.get("/changes", params={"subject": "study", "since": 1, "wait": 1})
    assert [(one["StudyInstanceUID"], one["Verdict"]) for one in found] == [(STUDY, "idle")]
    assert [one["Subject"] for one in (await http.get("/changes")).json()["changes"]] == ["series"]
