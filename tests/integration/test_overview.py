"""Heartbeats, the live page's stream and its table, through the application and over real HTTP, on both databases."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine
from fastapi import FastAPI
from sqlalchemy import Select, text
from sqlalchemy.dialects import sqlite

from api.follower import Follower
from api.overview import LATEST, Overview
from api.stored import MAX_SKIP
from bench.rig.processes import Process, server
from common.settings import ServerSettings
from db import Database
from models import MAX_ARRIVING
from storage import heartbeats, latest, stored
from storage.keys import Keys
from storage.listing import Listing
from storage.purge import SERIES_AT_ONCE
from storage.stored import LOOKED_THROUGH, Wanted
from tests.rig.factories import RECEIVED_AT, SERIES, STUDY, arriving, make_report, make_state
from tests.rig.transactions import is_on_sqlite


async def tell(http: httpx.AsyncClient, state: dict[str, Any]) -> None:
    assert (await http.put(f"/gateways/{state['GatewayID']}", json=state)).status_code == 200


async def stored_as(http: httpx.AsyncClient, series: str = SERIES, **change: Any) -> None:
    body = make_report("1", series=series).model_dump(mode="json") | change
    assert (await http.post("/series", json=body)).status_code in (200, 201)


# --- heartbeats -------------------------------------------------------------------------------------------------


async def test_the_last_heartbeat_of_each_gateway_is_known(http: httpx.AsyncClient) -> None:
    await tell(http, make_state("b", Instances=1))
    await tell(http, make_state("a"))
    await tell(http, make_state("b", Instances=2, Arriving=[arriving(SERIES, 3)]))
    found = (await http.get("/gateways")).json()["gateways"]
    assert [one["State"]["GatewayID"] for one in found] == ["a", "b"]
    assert found[1]["State"]["Instances"] == 2
    assert found[1]["State"]["Arriving"][0]["Instances"] == 3
    assert 0 <= found[1]["SilentS"] < 60
    assert datetime.fromisoformat(found[1]["SeenAt"]).tzinfo


async def test_silence_is_by_the_servers_clock_and_a_gateway_silent_for_a_day_is_forgotten(
    http: httpx.AsyncClient,
) -> None:
    await tell(http, make_state("old", At=RECEIVED_AT.isoformat()))
    now = datetime.now(UTC)
    with time_machine.travel(now + timedelta(hours=23), tick=False):
        (one,) = (await http.get("/gateways")).json()["gateways"]
        assert abs(one["SilentS"] - 23 * 3600) < 60
    with time_machine.travel(now + timedelta(hours=25), tick=False):
        await tell(http, make_state("new"))
        found = (await http.get("/gateways")).json()["gateways"]
    assert [one["State"]["GatewayID"] for one in found] == ["new"]


async def test_of_too_many_gateways_those_are_known_that_spoke_last(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "MAX_GATEWAYS", 3)
    watcher = app.state.overview.frames()
    at = datetime.now(UTC)
    for second, name in enumerate("abcad"):
        with time_machine.travel(at + timedelta(seconds=second), tick=False):
            await tell(http, make_state(name))
    found = (await http.get("/gateways")).json()["gateways"]
    assert [one["State"]["GatewayID"] for one in found] == ["a", "c", "d"]
    assert json.loads(await anext(watcher))["Gateways"].keys() == {"a", "c", "d"}
    await watcher.aclose()


@pytest.mark.parametrize(
    ("path", "change", "field"),
    [
        ("other", {}, "GatewayID"),
        ("g", {"Associations": -1}, "Associations"),
        ("g", {"Unknown": 1}, "Unknown"),
        ("g", {"AETitle": "x" * 257}, "AETitle"),
        ("g", {"Arriving": [arriving(SERIES, 1)] * (MAX_ARRIVING + 1)}, "Arriving"),
        ("g", {"Arriving": [arriving(SERIES, 1, Source="x" * 65)]}, "Arriving"),
    ],
)
async def test_a_wrong_heartbeat_is_422_naming_the_field(
    http: httpx.AsyncClient, path: str, change: dict[str, Any], field: str
) -> None:
    response = await http.put(f"/gateways/{path}", json=make_state("g") | change)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][:2] == ["body", field]
    assert (await http.get("/gateways")).json() == {"gateways": []}


async def test_heartbeats_are_written_with_one_scope_and_read_with_another(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    keys: Keys = app.state.keys
    for scope, put, get in (("series:write", 200, 403), ("series:read", 403, 200)):
        _, key = await keys.create("test", [scope])
        http.headers["Authorization"] = f"Bearer {key}"
        assert (await http.put("/gateways/g", json=make_state("g"))).status_code == put
        for path in ("/gateways", "/overview/series"):
            assert (await http.get(path)).status_code == get


async def test_a_text_of_a_wrong_form_is_told_in_words(http: httpx.AsyncClient) -> None:
    for path in ("/series?PatientID=%00", "/conflicts?after=x", "/overview/series?search=%7f"):
        (problem,) = (await http.get(path)).json()["detail"]
        assert problem["msg"] == "does not have the form that it must have: see /docs"
    (problem,) = (await http.put("/gateways/a", json=make_state("a") | {"GatewayID": "a\nb"})).json()["detail"]
    assert (problem["loc"], "[^" in problem["msg"]) == (["body", "GatewayID"], False)


async def test_a_gateway_before_0_2_is_heard_and_says_no_version(http: httpx.AsyncClient) -> None:
    old = make_state("old")
    del old["Version"]
    await tell(http, old)
    await tell(http, make_state("new", Version="9.9.9"))
    new, older = (one["State"]["Version"] for one in (await http.get("/gateways")).json()["gateways"])
    assert (new, older) == ("9.9.9", None)


async def test_what_a_newer_server_keeps_of_a_gateway_can_be_read(app: FastAPI, http: httpx.AsyncClient) -> None:
    await tell(http, make_state("g"))
    database: Database = app.state.database
    newer = json.dumps(make_state("g") | {"OfTheFuture": 1})
    change = text('UPDATE gateways SET "State" = :state').bindparams(state=newer)
    if not is_on_sqlite(database):
        change = text('UPDATE gateways SET "State" = CAST(:state AS jsonb)').bindparams(state=newer)
    await database.engine.write(lambda connection: connection.execute(change))
    assert len((await http.get("/gateways")).json()["gateways"]) == 1


# --- the table --------------------------------------------------------------------------------------------------


async def uids(http: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await http.get("/overview/series", params=query)
    assert answer.status_code == 200, answer.text
    return [one["SeriesInstanceUID"] for one in answer.json()["series"]]


async def test_series_come_by_their_last_change_the_newest_first_page_by_page(http: httpx.AsyncClient) -> None:
    for n in range(5):
        await stored_as(http, f"{STUDY}.{n}")
    await stored_as(http, f"{STUDY}.1", SOPInstanceUIDs=[f"{STUDY}.1.2"])
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    for _ in range(3):
        page = (await http.get("/overview/series", params=query)).json()
        seen += [one["SeriesInstanceUID"].rpartition(".")[2] for one in page["series"]]
        query["before"] = page["next"]
    assert page["next"] is None
    assert seen == ["1", "4", "3", "2", "0"]


NAMES = {"1": "DOE^JANE", "2": "Doe^John", "3": "Doerr^Eva", "4": "van der Berg^Jan", "5": "100%^Sure", "6": "Müller^Ü"}
NAMES |= {"7": "Strauß^Vanessa"}


SEARCHES = (
    ("doe", "123"),
    ("DOE^", "12"),
    ("Doe, Jane", "1"),
    ("doe jane", "1"),
    ("  doe^jane ", "1"),
    ("van der Berg, J", "4"),
    ("jane", "1"),
    ("jane acc_1 doe", "1"),
    ("jane acc_2", ""),
    ("berg thorax", "4"),
    ("SCHÄDEL", "24"),
    ("schädel ct", "4"),
    ("2026-01-04", "4"),
    ("20260105", "5"),
    (", ", "7654321"),
    ("müller", "6"),
    ("MÜLLER^Ü", "6"),
    ("Strauss, Vanessa", "7"),
    ("strauß vaneß", "7"),
    ("%", "5"),
    ("100%", "5"),
    ("_oe", ""),
    ("oe", "123"),
    ("d*", ""),
    ("doe\\", ""),
    ("'; DROP TABLE series; --", ""),
    ("PID-1", "1"),
    ("PID", "1234567"),
    ("ACC_4", "4"),
    ("ACC%4", ""),
    (f"{STUDY}.3", "3"),
    (STUDY, "1234567"),
    ("", "7654321"),
)


async def test_a_search_finds_every_word_wherever_it_stands(http: httpx.AsyncClient) -> None:
    for n, name in NAMES.items():
        change = {"PatientName": name, "PatientID": f"PID-{n}"}
        said = {"2": "MR SCHÄDEL", "4": "CT Thorax, Schädel"}.get(n, "Knee")
        attributes = {"AccessionNumber": [f"ACC_{n}"], "StudyDate": [f"2026010{n}"], "SeriesDescription": [said]}
        await stored_as(http, f"{STUDY}.{n}", **change, Attributes=attributes)
    for search, found in SEARCHES:
        last = [uid.rpartition(".")[2] for uid in await uids(http, search=search)]
        assert (search, sorted(last, reverse=not search.strip(", "))) == (search, [*found])


async def test_what_is_found_is_told_page_by_page_up_to_a_bound(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Database = app.state.database
    for n in range(5):
        await database.store(make_report("1", series=f"{STUDY}.{n}"))
    seen: list[str] = []
    query: dict[str, Any] = {"search": "test", "limit": 2}
    for _ in range(3):
        page = (await http.get("/overview/series", params=query)).json()
        seen += [one["SeriesInstanceUID"].rpartition(".")[2] for one in page["series"]]
        query["skip"] = page["next"]
    assert (seen, page["next"], page["LookedThrough"]) == ([*"43210"], None, LOOKED_THROUGH)
    assert {one["SeriesInStudy"] for one in page["series"]} == {5}
    assert (await http.get("/overview/series", params={"skip": MAX_SKIP + 1})).status_code == 422
    monkeypatch.setattr("api.stored.MAX_SKIP", 1)
    page = (await http.get("/overview/series", params={"search": "test", "limit": 2})).json()
    assert (len(page["series"]), page["next"], page["more"]) == (2, None, True)


async def test_words_inside_are_found_among_the_latest_and_beginnings_among_all(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.stored.LOOKED_THROUGH", 1)
    for n, name in enumerate(("Old^Jane", "New^Jane")):
        await stored_as(http, f"{STUDY}.{n}", PatientName=name)
    found = {word: await uids(http, search=word) for word in ("jane", "old", "old jane")}
    assert found == {"jane": [f"{STUDY}.1"], "old": [f"{STUDY}.0"], "old jane": [f"{STUDY}.0"]}


ROWS: dict[str, dict[str, Any]] = {
    "1": {"PatientName": "B^B", "Verdict": "idle", "Source": "A CT", "Attributes": {"Modality": ["CT"]}},
    "2": {"PatientName": "A^A", "Verdict": "capped", "Source": "C MR", "Attributes": {"Modality": ["MR"]}},
    "3": {"PatientName": "C^C", "Verdict": "idle", "Source": "B US", "Doubtful": ["odd"]},
    "4": {"PatientName": "D^D", "Verdict": None, "ExpectedInstances": 9, "ExpectedFrom": "tags"},
}


QUERIES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"Verdict": "idle"}, "31"),
    ({"Verdict": "idle", "search": "b"}, "1"),
    ({"Modality": "MR"}, "2"),
    ({"Source": "B US"}, "3"),
    ({"Doubtful": True}, "3"),
    ({"Incomplete": True}, "4"),
    ({"Conflicts": True}, "2"),
    ({"UpdatedSince": "2030-01-01"}, ""),
    ({"UpdatedUntil": "2030-01-01T00:00:00+02:00"}, "4321"),
    ({"sort": "Patient", "descending": False}, "2134"),
    ({"sort": "Patient"}, "4312"),
    ({"sort": "Source", "descending": False, "Verdict": "idle"}, "13"),
    ({"sort": "Stored", "descending": False}, "1234"),
    ({"sort": "Patient", "search": "p1"}, "4312"),
    ({"sort": "Modality", "Incomplete": True}, "4"),
    ({"sort": "StudyDate", "Doubtful": True, "descending": False}, "3"),
    ({"sort": "Patient", "Conflicts": True, "search": "another"}, ""),
    ({"sort": "Source", "StudyDate": "19000101-", "search": "p1"}, ""),
)


async def test_filters_words_and_an_order_hold_together(http: httpx.AsyncClient) -> None:
    for n, row in ROWS.items():
        await stored_as(http, f"{STUDY}.{n}", **row)
    await stored_as(http, f"{STUDY}.2", PatientID="another")
    for query, found in QUERIES:
        assert (query, [uid.rpartition(".")[2] for uid in await uids(http, **query)]) == (query, [*found])


@pytest.mark.parametrize(
    "query", [{"search": "x\n"}, {"search": "x" * 257}, {"before": 0}, {"limit": 201}, {"sort": "x"}]
)
async def test_a_wrong_question_is_422(http: httpx.AsyncClient, query: dict[str, Any]) -> None:
    assert (await http.get("/overview/series", params=query)).status_code == 422


YEARS = ("20100101", "20261231")


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (latest.select_newest(50, before=7), {"changes_by_number", "sqlite_autoindex_series_1"}),
        (latest.select_new(3, 9), {"changes_by_number"}),
        (latest.select_open_conflicts(), {"open_conflicts"}),
        (
            stored.select_found(Wanted(Listing(), "1.2 2026"), 200),
            {
                *("studies_by_name", "series_by_patient", "studies_by_accession", "series_by_study"),
                *("studies_by_date", "series_by_update", "sqlite_autoindex_series_1"),
            },
        ),
        (stored.select_found(Wanted(Listing(Verdict="idle")), 50), {"series_by_verdict"}),
        (stored.select_found(Wanted(Listing(Doubtful=True)), 50), {"doubtful_series"}),
        (stored.select_found(Wanted(Listing(Incomplete=True), order="Patient"), 50), {"incomplete_series"}),
        (stored.select_found(Wanted(Listing(Conflicts=True), order="Source"), 50), {"series_in_conflict"}),
        (stored.select_found(Wanted(Listing(StudyDate=YEARS), order="Patient"), 50), {"studies_by_name"}),
        (stored.select_found(Wanted(Listing(StudyDate=YEARS), order="StudyDate"), 50), {"studies_by_date"}),
        (stored.select_found(Wanted(Listing(StudyDate=YEARS), "x"), 50), {"series_by_update"}),
        *(
            (stored.select_found(Wanted(Listing(), order=order), 50), {index})
            for order, index in (
                ("Stored", "series_by_update"),
                ("Patient", "studies_by_name"),
                ("StudyDate", "studies_by_date"),
                ("Modality", "series_by_modality_and_update"),
                ("Verdict", "series_by_verdict"),
                ("Source", "series_by_source"),
            )
        ),
    ],
)
async def test_queries_of_the_page_go_along_an_index(tmp_path: Path, query: Select[Any], index: set[str]) -> None:
    compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    explained = text(f"EXPLAIN QUERY PLAN {compiled}")
    async with Database.open(ServerSettings(database_url=f"sqlite+aiosqlite:///{tmp_path / 's.db'}")) as database:
        steps = [row["detail"] for row in await database.engine.read(explained)]
    tables = [step for step in steps if step.startswith(("SCAN series", "SCAN changes"))]
    assert [step for step in tables if "INDEX" not in step] == []
    assert {name for name in index if any(name in step for step in steps)} == index


# --- the stream -------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path, database_url: str) -> Iterator[tuple[Process, str]]:
    with server(tmp_path, DATABASE_URL=database_url) as found:
        yield found


def frames(response: httpx.Response) -> Iterator[dict[str, Any]]:
    name = ""
    for line in response.iter_lines():
        kind, _, value = line.partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            assert name == "overview"
            yield json.loads(value)


def until(stream: Iterator[dict[str, Any]], found: Any) -> dict[str, Any]:
    return next(frame for frame in stream if found(frame))


def test_the_stream_tells_everything_and_then_what_changed(running: tuple[Process, str]) -> None:
    _, url = running
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:

        def beat(gateway: str, *series: dict[str, Any]) -> None:
            http.put(f"/gateways/{gateway}", json=make_state(gateway, Arriving=list(series))).raise_for_status()

        beat("one", arriving("1.1", 1), arriving("1.2", 1))
        beat("two")
        http.post("/series", json=make_report("1").model_dump(mode="json")).raise_for_status()
        with http.stream("GET", "/overview/stream") as response:
            stream = frames(response)
            first = next(stream)
            assert first["Full"]
            assert first["Gateways"].keys() == {"one", "two"} == first["Silent"].keys()
            assert [one["SeriesInstanceUID"] for one in first["Gateways"]["one"]["Arriving"]] == ["1.1", "1.2"]
            assert first["Totals"] == {"Series": 1, "Conflicts": 0, "Webhooks": []}
            (row,) = first["Stored"]
            assert (row["Number"], row["SeriesInstanceUID"], row["PatientName"]) == (1, SERIES, "Test^One")

            beat("one", arriving("1.2", 2), arriving("1.3", 1))
            after = until(stream, lambda frame: frame["Gateways"])
            assert "Full" not in after
            assert after["Gateways"].keys() == {"one"}
            news = after["Gateways"]["one"]
            assert {one["SeriesInstanceUID"]: one["Instances"] for one in news["Arriving"]} == {"1.2": 2, "1.3": 1}
            assert [json.loads(key)[0] for key in news["Gone"]] == ["1.1"]
            assert after["Stored"] == []

            http.post("/series", json=make_report("2").model_dump(mode="json")).raise_for_status()
            http.post("/series", json=make_report("1", series="1.9").model_dump(mode="json")).raise_for_status()
            news = [until(stream, lambda frame: frame["Stored"])]
            if len(news[0]["Stored"]) < 2:
                news.append(until(stream, lambda frame: frame["Stored"]))
            numbers = [row["Number"] for frame in reversed(news) for row in frame["Stored"]]
            assert numbers == sorted({*numbers} - {1}, reverse=True)  # a verdict of the study may have come between
            assert len(numbers) == 2
            assert news[-1]["Totals"]["Series"] == 2


def test_an_open_stream_does_not_keep_the_server_from_stopping(running: tuple[Process, str]) -> None:
    process, url = running
    with (
        httpx.Client(trust_env=False, timeout=120) as http,
        http.stream("GET", f"{url}/overview/stream") as response,
    ):
        stream = frames(response)
        next(stream)
        process.stop(timeout_s=60)
        list(stream)  # ends
    assert process.events("server.stopped")


async def test_one_look_serves_all_who_watch_and_nobody_looks_while_nobody_watches(database: Database) -> None:
    follower = Follower(database)
    overview = Overview(database, follower)
    loop = asyncio.get_running_loop()
    watchers = [overview.frames() for _ in range(5)]
    began = loop.time()
    for _ in range(3):
        seen = [await anext(watcher) for watcher in watchers]
        assert len(set(seen)) == 1
    assert overview.looks == 3
    assert loop.time() - began > 2
    late = overview.frames()
    assert json.loads(await anext(late))["Full"]
    assert overview.looks == 3
    follower.end()
    assert [frame async for frame in late] == []
    for watcher in watchers:
        await watcher.aclose()


async def test_what_was_stored_last_is_what_a_page_begins_with(database: Database) -> None:
    for n in range(LATEST + 5):
        await database.store(make_report("1", series=f"{STUDY}.{n}"))
    overview = Overview(database, Follower(database))
    watcher = overview.frames()
    frame = json.loads(await anext(watcher))
    assert [row["Number"] for row in frame["Stored"]] == list(range(LATEST + 5, 5, -1))
    assert frame["Totals"]["Series"] == LATEST + 5
    await database.store(make_report("1", series="9.9"))
    after = json.loads(await anext(watcher))
    assert [row["SeriesInstanceUID"] for row in after["Stored"]] == ["9.9"]
    assert after["Totals"]["Series"] == LATEST + 6
    await database.purger.series(after=None, before=datetime(9999, 1, 1, tzinfo=UTC), dry=False)
    assert json.loads(await anext(watcher))["Totals"]["Series"] == LATEST + 6 - SERIES_AT_ONCE
    await watcher.aclose()


async def test_a_studys_verdict_is_told_to_those_who_watch_also_where_no_series_changes(database: Database) -> None:
    await database.store(make_report("1").model_copy(update={"Verdict": None}))
    watcher = Overview(database, Follower(database)).frames()
    (open_,) = json.loads(await anext(watcher))["Studies"]
    assert (open_["StudyInstanceUID"], open_["Verdict"], open_["NumSeries"], open_["Unsettled"]) == (STUDY, None, 1, 1)
    await database.declare_study(STUDY, "complete", "me", "over")
    news = json.loads(await anext(watcher))
    (told,) = news["Studies"]
    assert (news["Stored"], told["Verdict"], told["NumInstances"]) == ([], "declared", 1)
    assert "over" in told["Basis"]
    assert json.loads(await anext(watcher))["Studies"] == []
    await watcher.aclose()


async def test_a_page_of_stored_series_has_their_studies(http: httpx.AsyncClient) -> None:
    await stored_as(http, Verdict=None)
    await stored_as(http, f"{STUDY}.2", Verdict=None)
    await stored_as(http, "9.1", StudyInstanceUID="9", Verdict=None)
    page = (await http.get("/overview/series", params={"search": STUDY})).json()
    assert {one["SeriesInStudy"] for one in page["series"]} == {2}
    assert [(one["StudyInstanceUID"], one["NumSeries"]) for one in page["studies"]] == [(STUDY, 2)]
    everything = (await http.get("/overview/series")).json()
    assert sorted(one["StudyInstanceUID"] for one in everything["studies"]) == [STUDY, "9"]


async def test_conflicts_and_webhooks_are_told_without_a_secret(database: Database) -> None:
    await database.store(make_report("1"))
    await database.store(make_report("2", patient_id="other"))
    hook = text(
        'INSERT INTO webhooks ("Url", "Secret", "CreatedAt", "Position", "Attempts") '
        "VALUES ('https://ai.example/hook?token=secret', 'secret', CURRENT_TIMESTAMP, 0, 2)"
    )
    await database.engine.write(lambda connection: connection.execute(hook))
    watcher = Overview(database, Follower(database)).frames()
    frame = await anext(watcher)
    assert "secret" not in frame
    totals = json.loads(frame)["Totals"]
    assert totals["Conflicts"] == 1
    assert totals["Webhooks"] == [
        {"Id": 1, "Host": "ai.example", "Behind": 2, "Attempts": 2, "Ended": False, "Dead": 0}
    ]
    await watcher.aclose()
