"""Studies over HTTP: listed, read, declared and counted, and who is told of their verdicts; on both databases."""

import asyncio
import csv
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Select, text
from sqlalchemy.dialects.sqlite import dialect

from api.follower import Follower
from api.listing import packed
from api.operations import operations
from common.settings import ServerSettings
from db import Database, select_changes
from models import GatewayState, SeriesReport
from storage import study_views
from storage.listing import StudyListing, select_listed
from tests.rig.factories import RECEIVED_AT, make_report, make_state

WHY = {"Because": "the scan was stopped"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def part(study: str, series: int, *sops: str, **more: Any) -> SeriesReport:
    """Images of a series that is not over: so its study is open until somebody says otherwise."""
    body = make_report(*sops or ("1",), series=f"{study}.{series}", study=study).model_dump(mode="json")
    return SeriesReport.model_validate(body | {"Verdict": None} | more)


async def post(http: httpx.AsyncClient, report: SeriesReport) -> None:
    assert (await http.post("/series", json=report.model_dump(mode="json"))).status_code in (200, 201)


async def get(http: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    answer = await http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def declare(http: httpx.AsyncClient, study: str, word: str = "complete") -> dict[str, Any]:
    answer = await http.post(f"/studies/{study}/declaration", json={"Declared": word} | WHY)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


def attributes(modality: str, day: str, accession: str) -> dict[str, list[str]]:
    return {"Modality": [modality], "StudyDate": [day], "AccessionNumber": [accession], "StudyDescription": ["Head"]}


async def four(http: httpx.AsyncClient) -> None:
    """Four studies, of which one is declared and one lacks images."""
    for study, modality, day, accession, more in (
        ("1.1", "CT", "20260101", "A1", {"PatientID": "P1", "Source": "CT1 CT"}),
        ("1.2", "MR", "20260102", "A2", {"PatientID": "P2", "Source": "MR1 MR"}),
        ("1.3", "CT", "20260103", "A3", {"PatientID": "P1", "Source": "CT1 CT"}),
        ("1.4", "CT", "20260104", "A4", {"PatientID": "P4", "ExpectedInstances": 5, "ExpectedFrom": "pacs"}),
    ):
        await post(http, part(study, 1, Attributes=attributes(modality, day, accession), **more))
    await post(http, part("1.2", 2, "1", "2", Attributes=attributes("SR", "20260102", "A2"), PatientID="P2"))
    await declare(http, "1.3")


# --- read -------------------------------------------------------------------------------------------------------


async def test_a_study_is_what_its_series_come_to(http: httpx.AsyncClient) -> None:
    await four(http)
    study = await get(http, "/studies/1.2")
    assert (study["NumSeries"], study["NumInstances"], study["Unsettled"]) == (2, 3, 2)
    assert (study["Modalities"], study["StudyDate"], study["StudyDescription"]) == (["MR", "SR"], "20260102", "Head")
    assert (study["PatientID"], study["AccessionNumber"], study["Source"]) == ("P2", "A2", "MR1 MR")
    assert (study["Verdict"], study["Incomplete"], study["FalseCompletions"]) == (None, 0, 0)
    assert (await get(http, "/studies/1.4"))["Incomplete"] == 1


@pytest.mark.parametrize("path", ["/studies/9", "/studies/9/series", "/studies/9/timeline"])
async def test_a_study_that_is_not_stored_is_404(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


async def test_a_study_whose_uid_has_a_slash_is_found(http: httpx.AsyncClient) -> None:
    await post(http, part("1/2", 1))
    for path in ("", "/series", "/timeline"):
        assert (await http.get(f"/studies/1%2F2{path}")).status_code == 200, path


async def test_open_series_are_those_that_gateways_name(http: httpx.AsyncClient) -> None:
    await four(http)
    now = datetime.now(UTC).isoformat()
    named = {"SeriesInstanceUID": "1.1.9", "StudyInstanceUID": "1.1", "Source": "CT1 CT", "Revision": 1, "Instances": 1}
    state = make_state("g", Arriving=[named | {"FirstReceivedAt": now, "LastReceivedAt": now}], OpenSeries=1)
    assert (await http.put("/gateways/g", json=state)).status_code == 200
    found = {one["StudyInstanceUID"]: one["OpenSeries"] for one in (await get(http, "/studies"))["studies"]}
    assert found == {"1.1": 1, "1.2": 0, "1.3": 0, "1.4": 0}


async def test_whoever_writes_about_a_study_is_told_its_open_series_as_whoever_reads_it(
    http: httpx.AsyncClient,
) -> None:
    await four(http)
    now = datetime.now(UTC).isoformat()
    named = {"SeriesInstanceUID": "1.2.9", "StudyInstanceUID": "1.2", "Source": "CT1 CT", "Revision": 1, "Instances": 1}
    state = make_state("g", Arriving=[named | {"FirstReceivedAt": now, "LastReceivedAt": now}], OpenSeries=1)
    assert (await http.put("/gateways/g", json=state)).status_code == 200
    counted = await http.post("/studies/1.2/counts", json={"Series": 3, "Instances": 40, "At": now, "GatewayID": "g"})
    assert counted.json() == await get(http, "/studies/1.2")
    assert counted.json()["OpenSeries"] == 1
    assert (await declare(http, "1.2"))["Record"]["OpenSeries"] == 1


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, "1.1 1.2 1.3 1.4"),
        ({"PatientID": "P1"}, "1.1 1.3"),
        ({"StudyInstanceUID": "1.2"}, "1.2"),
        ({"AccessionNumber": "A2"}, "1.2"),
        ({"Modality": "CT"}, "1.1 1.3 1.4"),
        ({"Modality": "SR"}, "1.2"),
        ({"Source": "CT1 CT"}, "1.1 1.3"),
        ({"Verdict": "declared"}, "1.3"),
        ({"Verdict": "null"}, "1.1 1.4 1.2"),
        ({"Verdict": "verified"}, ""),
        ({"StudyDate": "20260102-20260103"}, "1.2 1.3"),
        ({"StudyDate": "20260103-"}, "1.3 1.4"),
        ({"Incomplete": "true"}, "1.4"),
        ({"Incomplete": "false"}, "1.1 1.2 1.3"),
        ({"UpdatedSince": "2999-01-01"}, ""),
        ({"UpdatedUntil": "2999-01-01", "order": "newest"}, "1.3 1.2 1.4 1.1"),
        ({"Modality": "CT", "order": "newest"}, "1.3 1.4 1.1"),
        ({"Modality": "CT", "PatientID": "P1", "Verdict": "null"}, "1.1"),
    ],
)
async def test_studies_are_filtered_and_pages_follow_each_other(
    http: httpx.AsyncClient, query: dict[str, str], wanted: str
) -> None:
    await four(http)
    seen: list[str] = []
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        page = await get(http, "/studies", **query, limit=1, **({"after": page["next"]} if page["next"] else {}))
        seen += [one["StudyInstanceUID"] for one in page["studies"]]
    assert seen == wanted.split()
    assert [one["StudyInstanceUID"] for one in (await get(http, "/studies", **query))["studies"]] == seen


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"StudyDate": "yesterday"}, "StudyDate"),
        ({"Verdict": "done"}, "Verdict"),
        ({"after": "no place", "order": "newest"}, "after"),
        ({"Patientid": "P1"}, "Patientid"),
        ({"Conflicts": "true"}, "Conflicts"),
        ({"limit": "0"}, "limit"),
    ],
)
async def test_a_wrong_question_is_422_naming_the_field(
    http: httpx.AsyncClient, query: dict[str, str], field: str
) -> None:
    answer = await http.get("/studies", params=query)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == field


async def test_series_without_a_verdict_are_found_too(http: httpx.AsyncClient) -> None:
    await four(http)
    await post(http, make_report("1", series="1.5.1", study="1.5"))
    found = await get(http, "/series", Verdict="null", order="newest")
    assert [one["SeriesInstanceUID"] for one in found["series"]] == ["1.2.2", "1.4.1", "1.3.1", "1.2.1", "1.1.1"]


async def test_the_series_of_a_study_come_page_by_page(http: httpx.AsyncClient) -> None:
    await four(http)
    first = await get(http, "/studies/1.2/series", limit=1)
    assert [one["SeriesInstanceUID"] for one in first["series"]] == ["1.2.1"]
    second = await get(http, "/studies/1.2/series", limit=1, after=first["next"])
    assert [one["SeriesInstanceUID"] for one in second["series"]] == ["1.2.2"]
    assert second["next"] is None


async def test_a_studys_timeline_is_that_of_its_series_and_its_own_page_by_page(http: httpx.AsyncClient) -> None:
    at = RECEIVED_AT.isoformat()
    for series in (1, 2):
        reported = {"At": at, "Event": "series.reported", "Details": {"Images": series}}
        await post(http, part("1.2", series, Timeline=[reported], GatewayID="g"))
    await post(http, part("1.9", 1))
    await declare(http, "1.2")
    whole = await get(http, "/studies/1.2/timeline")
    assert (whole["next"], whole["NotShown"]) == (None, 0)
    events = [(one["Event"], one["SeriesInstanceUID"]) for one in whole["events"]]
    assert events == [
        *(("series.reported", "1.2.1"), ("series.reported", "1.2.2")),
        *(("report.stored", "1.2.1"), ("report.stored", "1.2.2"), ("study.told", None)),
    ]
    assert whole["events"][-1]["Details"]["Verdict"] == "declared"
    assert WHY["Because"] in whole["events"][-1]["Details"]["Basis"]
    pages, page = [], {"next": ""}
    while page["next"] is not None:
        page = await get(http, "/studies/1.2/timeline", limit=2, **({"after": page["next"]} if page["next"] else {}))
        pages.append(page["events"])
    assert [len(events) for events in pages] == [2, 2, 1]
    assert [event for events in pages for event in events] == whole["events"]
    assert (await http.get("/studies/1.2/timeline", params={"after": "x"})).status_code == 422


async def test_of_a_large_study_the_timeline_has_the_first_series_and_counts_the_others(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("api.studies", "storage.study_views"):
        monkeypatch.setattr(f"{module}.SERIES_OF_TIMELINE", 2)
    for series in range(1, 5):
        await post(http, part("1.2", series))
    found = await get(http, "/studies/1.2/timeline")
    assert {one["SeriesInstanceUID"] for one in found["events"]} == {"1.2.1", "1.2.2"}
    assert found["NotShown"] == 2


async def test_every_study_that_matches_is_a_line_of_csv(http: httpx.AsyncClient) -> None:
    await four(http)
    await post(http, part("1.5", 1, PatientName="=1+1", PatientID="P5"))
    answer = await http.get("/studies.csv", params={"Verdict": "null"})
    assert 'filename="studies.csv"' in answer.headers["Content-Disposition"]
    rows = {row["StudyInstanceUID"]: row for row in csv.DictReader(answer.text.splitlines())}
    assert rows.keys() == {"1.1", "1.2", "1.4", "1.5"}
    assert (rows["1.2"]["Modalities"], rows["1.2"]["NumSeries"], rows["1.2"]["Verdict"]) == ("MR\\SR", "2", "")
    assert rows["1.5"]["PatientName"] == "'=1+1"


# --- said -------------------------------------------------------------------------------------------------------


async def test_a_person_declares_a_study_and_takes_it_back(http: httpx.AsyncClient) -> None:
    await four(http)
    done = await declare(http, "1.1")
    assert done["Changed"]
    assert done["Record"]["Verdict"] == "declared"
    again = await declare(http, "1.1")
    assert not again["Changed"]
    assert "nothing to do" in again["Did"]
    back = await declare(http, "1.1", "incomplete")
    assert (back["Changed"], back["Record"]["Verdict"], back["Record"]["Withdrawn"]) == (True, None, "declared")
    assert (await http.post("/studies/9/declaration", json={"Declared": "complete"} | WHY)).status_code == 404
    assert (await http.post("/studies/1.1/declaration", json={"Declared": "complete"})).status_code == 422


async def test_a_gateway_says_what_the_pacs_has_of_a_study(http: httpx.AsyncClient) -> None:
    await four(http)
    said = {"Series": 3, "Instances": 40, "At": datetime.now(UTC).isoformat(), "GatewayID": "g"}
    answer = await http.post("/studies/1.2/counts", json=said)
    assert answer.status_code == 200
    assert (answer.json()["ExpectedSeries"], answer.json()["ExpectedInstances"]) == (3, 40)
    found = await get(http, "/studies", Incomplete="true")
    assert [one["StudyInstanceUID"] for one in found["studies"]] == ["1.4", "1.2"]
    assert (await http.post("/studies/9/counts", json=said)).status_code == 404
    for wrong in ({"Series": -1}, {"GatewayID": ""}, {"Patients": 1}):
        refused = await http.post("/studies/1.2/counts", json=said | wrong)
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", *wrong]


@pytest.mark.parametrize("path", ["/studies/1.1/timeline?", "/studies?Verdict=null&", "/series?Verdict=null&"])
async def test_a_place_beyond_the_calendar_is_422_naming_the_field(http: httpx.AsyncClient, path: str) -> None:
    await four(http)
    place = ["9999-12-31T23:59:59-12:00", 1 if "timeline" in path else "1.1"]
    refused = await http.get(f"{path}after={packed(place)}")
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["query", "after"]


async def test_each_route_needs_its_scope(app: FastAPI, http: httpx.AsyncClient) -> None:
    await four(http)
    said = {"Series": 3, "Instances": 40, "At": datetime.now(UTC).isoformat(), "GatewayID": "g"}
    word = {"Declared": "complete"} | WHY
    for scope, read, counted, declared in (
        ("series:read", 200, 403, 403),
        ("series:write", 403, 200, 403),
        ("admin", 200, 200, 200),
    ):
        _, secret = await app.state.database.keys.create("k", [scope], None)
        headers = {"Authorization": f"Bearer {secret}"}
        for path in ("", "/1.1", "/1.1/series", "/1.1/timeline", ".csv"):
            assert (await http.get(f"/studies{path}", headers=headers)).status_code == read, (scope, path)
        assert (await http.get("/completions/studies", headers=headers)).status_code == read
        assert (await http.post("/studies/1.1/counts", headers=headers, json=said)).status_code == counted
        assert (await http.post("/studies/1.1/declaration", headers=headers, json=word)).status_code == declared


# --- told -------------------------------------------------------------------------------------------------------


async def test_changes_tell_of_studies_only_where_they_are_asked_for(http: httpx.AsyncClient) -> None:
    await post(http, part("1.2", 1))
    await declare(http, "1.2")
    await post(http, part("1.2", 2, Attributes={"Modality": ["SR"]}))
    told = {subject: await get(http, "/changes", subject=subject) for subject in ("series", "study", "any")}
    assert await get(http, "/changes") == told["series"]
    assert [one["SeriesInstanceUID"] for one in told["series"]["changes"]] == ["1.2.1", "1.2.2"]
    assert {one["Subject"] for one in told["series"]["changes"]} == {"series"}
    of_study = told["study"]["changes"]
    assert [(one["SeriesInstanceUID"], one["StudyInstanceUID"]) for one in of_study] == [(None, "1.2")] * 2
    assert [(one["Revision"], one["Verdict"], one["Kinds"]) for one in of_study] == [
        (1, "declared", ["revised", "declared"]),
        (2, None, ["revised", "contradicted"]),
    ]
    assert [(one["NumSeries"], one["NumInstances"], one["Modality"]) for one in of_study] == [
        (1, 1, "CT"),
        (2, 2, "CT\\SR"),
    ]
    assert [one["Number"] for one in told["any"]["changes"]] == [1, 2, 3, 4]
    first = await get(http, "/changes", subject="study", limit=1)
    assert (first["changes"], first["done"]) == (of_study[:1], False)
    assert (await get(http, "/changes", subject="study", since=first["last"]))["changes"] == of_study[1:]
    assert (await http.get("/changes", params={"subject": "patient"})).status_code == 422


async def test_the_figures_count_what_studies_were_told_and_how_often_that_was_wrong(http: httpx.AsyncClient) -> None:
    await post(http, part("1.2", 1, Source="CT1 CT"))
    await declare(http, "1.2")
    await post(http, part("1.2", 2))
    assert (await get(http, "/completions/studies"))["completions"] == [
        {"Source": "CT1 CT", "Policy": "declared", "Verdict": "declared", "Studies": 1, "False": 1}
    ]


async def streamed(follower: Follower, subject: Any, count: int, since: int = 0) -> list[dict[str, Any]]:
    """The first changes that a reader of the stream is told."""
    told: list[dict[str, Any]] = []
    async for some in follower.events(since, subject):
        told += [json.loads(line) for line in re.findall(r"^data: (.*)$", some.decode(), re.MULTILINE)]
        if len(told) >= count:
            return told
    raise AssertionError(told)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_stream_tells_what_it_was_asked_for_now_and_later(database: Database, begun: bool) -> None:
    follower = Follower(database)
    await database.store(part("1.2", 1))
    await database.declare_study("1.2", "complete", "me", "over")
    if begun:  # it has them in memory
        await follower.look_once()
    running = asyncio.create_task(follower.run())
    wanted = {"series": 3, "study": 2, "any": 5}
    readers = {subject: asyncio.create_task(streamed(follower, subject, count)) for subject, count in wanted.items()}
    await database.store(part("1.2", 2))  # which contradicts
    await database.store(part("1.2", 3))
    follower.stored()
    told = {subject: await reader for subject, reader in readers.items()}
    follower.end()
    await running
    assert [one["Number"] for one in told["any"]] == [1, 2, 3, 4, 5]
    assert [one["Subject"] for one in told["any"]].count("study") == 2
    for subject in ("series", "study"):
        assert told[subject] == [one for one in told["any"] if one["Subject"] == subject]


# --- elsewhere --------------------------------------------------------------------------------------------------


async def test_prometheus_reads_how_many_are_open_and_how_long_one_is_incomplete(http: httpx.AsyncClient) -> None:
    async def measured() -> dict[str, float]:
        lines = (await http.get("/metrics")).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    await post(http, part("1.1", 1))
    before = await measured()
    assert (before["server_open_studies"], before["server_incomplete_study_seconds"]) == (1, 0)
    at = datetime.now(UTC).isoformat()
    await post(http, part("1.2", 1, ExpectedInstances=9, ExpectedFrom="pacs", LastReceivedAt=at, FirstReceivedAt=at))
    await post(http, part("1.3", 1, ExpectedInstances=9, ExpectedFrom="pacs"))
    await declare(http, "1.1")
    after = await measured()
    assert after["server_open_studies"] == 2
    age_s = (datetime.now(UTC) - RECEIVED_AT).total_seconds()
    assert age_s - 600 < after["server_incomplete_study_seconds"] <= age_s  # of 1.3, whose images came first


@pytest.mark.parametrize("modalities", [3, 60])
@pytest.mark.parametrize("without", [0, 1])
async def test_qido_counts_a_study_of_any_number_of_modalities(
    http: httpx.AsyncClient, modalities: int, without: int
) -> None:
    for n in range(modalities):
        await post(http, part("1.2", n, "1", "2", Attributes={"Modality": [f"M{n}"]}))
    for n in range(without):
        await post(http, part("1.2", 999 + n, Attributes={}))
    (found,) = (await http.get("/dicom-web/studies", params={"StudyInstanceUID": "1.2"})).json()
    assert found["00201206"]["Value"] == [modalities + without]
    assert found["00201208"]["Value"] == [2 * modalities + without]
    assert found["00080061"]["Value"] == sorted(f"M{n}" for n in range(modalities))


PLANS: Sequence[tuple[Select[Any], str]] = [
    (select_listed(StudyListing(), ["1"], 9), "sqlite_autoindex_studies_1"),
    (select_listed(StudyListing(PatientID="P"), ["1"], 9), "study_by_patient"),
    (select_listed(StudyListing(AccessionNumber="A"), None, 9), "study_by_accession"),
    (select_listed(StudyListing(Verdict="null"), [NOW, "1"], 9), "study_by_verdict"),
    (select_listed(StudyListing(Verdict="idle", newest=True), None, 9), "study_by_verdict"),
    (select_listed(StudyListing(newest=True), [NOW, "1"], 9), "study_by_update"),
    (select_listed(StudyListing(UpdatedSince=NOW), None, 9), "study_by_update"),
    (select_listed(StudyListing(StudyDate=("20260101", None)), ["20260101", "1"], 9), "study_by_date"),
    (select_listed(StudyListing(Incomplete=True, newest=True), None, 9), "incomplete_studies"),
    (select_listed(StudyListing(Incomplete=True, Verdict="null"), None, 9), "incomplete_studies"),
    (study_views.select_changed(NOW, 9), "study_by_update"),
    (study_views.select_open(), "study_by_verdict"),
    (study_views.select_incomplete_since(NOW), "incomplete_studies"),
    (select_changes(7, 9, "study"), "changes_of_studies"),
    (select_changes(7, 9, "series"), "changes_by_number"),
]


@pytest.mark.parametrize(("query", "index"), PLANS, ids=[f"{n}-{index}" for n, (_, index) in enumerate(PLANS)])
async def test_what_is_asked_of_studies_goes_along_an_index_and_sorts_nothing(
    tmp_path: Path, query: Select[Any], index: str
) -> None:
    async with Database.open(ServerSettings(database_url=f"sqlite+aiosqlite:///{tmp_path}/series.db")) as database:
        explained = text(re.sub(r"\?", "'2'", f"EXPLAIN QUERY PLAN {query.compile(dialect=dialect())}"))
        steps = [row["detail"] for row in await database.engine.read(explained)]
    assert any(re.search(rf" INDEX {index}\b", step) for step in steps), steps
    assert not any("USE TEMP B-TREE" in step for step in steps), steps


async def test_the_command_line_declares_a_study_or_says_why_not(database: Database) -> None:
    await database.store(part("1.2", 1))
    said = {"declared": "complete", "because": "over", "by": "me, command line"}
    declare_study = operations(database)["declare_study"]
    done = await declare_study(study_instance_uid="1.2", **said)
    assert (done["study"], done["verdict"], done["series"], done["images"]) == ("1.2", "declared", 1, 1)
    back = await declare_study(study_instance_uid="1.2", **said | {"declared": "incomplete"})
    assert back["verdict"] == "none (declared was withdrawn)"
    for unknown in ("9", "no UID\\at all"):
        assert unknown in (await declare_study(study_instance_uid=unknown, **said))["unknown"]


@pytest.mark.parametrize("word", ["complete", "incomplete"])
async def test_a_word_about_a_study_as_if_it_were_a_series_is_answered_with_how_to_say_it(
    database: Database, word: str
) -> None:
    await database.store(part("1.2", 1))
    (one,) = await database.page(after=None, limit=9)
    said = {"declared": word, "because": "over", "by": "me, command line"}
    of_series = await operations(database)["declare"](series_instance_uid="1.2", **said)
    assert "--study" in of_series["unknown"]
    of_study = await operations(database)["declare_study"](study_instance_uid=one.SeriesInstanceUID, **said)
    assert "without --study" in of_study["unknown"]
    for unknown in ("9", "no UID\\at all"):
        assert "--study" not in (await operations(database)["declare"](series_instance_uid=unknown, **said))["unknown"]


async def test_a_word_about_a_study_over_http_as_if_it_were_a_series_names_the_way(http: httpx.AsyncClient) -> None:
    await http.post("/series", json=part("1.2", 1).model_dump(mode="json"))
    answer = await http.post("/series/1.2/declaration", json={"Declared": "complete", "Because": "over"})
    assert (answer.status_code, "POST /studies/" in answer.json()["detail"]) == (404, True)


async def test_a_study_that_reads_otherwise_has_changed_also_without_another_verdict(database: Database) -> None:
    now = datetime.now(UTC)
    await database.store(part("1.2", 1, Verdict="idle", FirstReceivedAt=now, LastReceivedAt=now))
    before = await database.study("1.2")
    for gateway, named in (("a", ["1.2"]), ("b", ["1.2"]), ("b", [])):  # b lets it go: so it is looked at
        state = make_state(gateway, OpenStudies=named, OpenSeries=len(named))
        await database.heard(GatewayState.model_validate(state))
    after = await database.study("1.2")
    assert before is not None
    assert after is not None
    assert (before.Verdict, after.Verdict, after.Revision) == (None, None, before.Revision)
    assert "gateway a" in str(after.Basis)
    assert after.UpdatedAt > before.UpdatedAt
