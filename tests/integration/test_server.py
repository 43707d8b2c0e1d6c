"""The HTTP contract, through the ASGI application and a real SQLite file."""

import asyncio
import csv
import io
import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import fastapi.openapi.utils
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from api.examples import GATEWAY_REPORT, MINIMAL_REPORT
from common.settings import ServerSettings
from common.version import version
from gateway.server_client import _is_about_the_report, ask
from server import create_app
from storage.engine import Engine
from storage.keys import Keys
from tests.rig.factories import make_report
from tests.rig.serving import empty_database


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    app = create_app(ServerSettings(database_url=empty_database(tmp_path), max_body_bytes=4096))
    async with app.router.lifespan_context(app):
        yield app


async def test_the_seeds_payload_alone_is_accepted(http: httpx.AsyncClient) -> None:
    response = await http.post("/series", json=MINIMAL_REPORT)
    assert response.status_code == 201
    assert {name: response.json()[name] for name in MINIMAL_REPORT} == MINIMAL_REPORT


async def test_second_report_is_200_with_the_union(http: httpx.AsyncClient) -> None:
    assert (await http.post("/series", json=GATEWAY_REPORT)).status_code == 201
    response = await http.post("/series", json=GATEWAY_REPORT | {"SOPInstanceUIDs": ["1.9"]})
    assert (response.status_code, response.json()["NumInstances"]) == (200, 3)
    record = (await http.get(f"/series/{GATEWAY_REPORT['SeriesInstanceUID']}")).json()
    assert record == response.json()


@pytest.mark.parametrize("field", ["SeriesInstanceUID", "StudyInstanceUID", "NumInstances"])
async def test_missing_field_is_422_naming_it(http: httpx.AsyncClient, field: str) -> None:
    response = await http.post("/series", json={k: v for k, v in MINIMAL_REPORT.items() if k != field})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b'"x"', b'{"PatientName": "Secret^Name\\ud800"}', b"\xff\xfe", b"nul\0"]
)
async def test_body_that_is_no_report_is_422(http: httpx.AsyncClient, body: bytes) -> None:
    response = await http.post("/series", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


async def test_error_text_never_repeats_the_value(http: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]) -> None:
    body = {"SeriesInstanceUID": "Secret\\Name", "PatientName": ["Secret^Name"], "Secret^Name": 1}
    response = await http.post("/series", json=body)
    printed = capfd.readouterr()
    assert response.status_code == 422
    assert "SeriesInstanceUID" in response.text
    shown = response.text.replace('["body","Secret^Name"]', "")  # the name of a field that does not exist
    assert "Secret" not in shown
    assert "Secret" not in printed.out + printed.err.replace("body.Secret^Name", "")


@pytest.mark.parametrize(
    "change",
    [
        {"SOPInstanceUIDs": [0] * 1000},
        {"MissingSOPInstanceUIDs": [0] * 1000},
        {"Attributes": {"Modality": [0] * 1000}},
        {"Attributes": {f"K{n}^": 0 for n in range(990)}},
        {f"Unknown{n}": 0 for n in range(900)},
        {f"Unknown{n}": 0 for n in range(2000)},
        {"InstanceAttributes": {f"X{n}": 0 for n in range(2000)}},
    ],
)
async def test_a_thousand_mistakes_get_a_short_answer(tmp_path: Path, change: dict[str, Any]) -> None:
    app = create_app(ServerSettings(database_url=empty_database(tmp_path)))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        response = await client.post("/series", json=MINIMAL_REPORT | change)
    assert response.status_code == 422
    assert len(response.content) < 6000


async def test_body_over_the_limit_is_413(http: httpx.AsyncClient) -> None:
    body = json.dumps(MINIMAL_REPORT | {"PatientName": "x" * 5000}).encode()

    async def unannounced() -> AsyncIterator[bytes]:
        yield body[:100]
        yield body[100:]

    for content in (body, unannounced()):
        response = await http.post("/series", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert "SERVER_MAX_BODY_BYTES" in response.json()["detail"]
        assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"PatientName": "\xff"}', 400),
        (b"[" * 4000, 400),
        (json.dumps(MINIMAL_REPORT | {"PatientName": "x" * 5000}).encode(), 413),
        (b"no JSON", 422),
        (json.dumps(MINIMAL_REPORT | {"NumInstances": "many"}).encode(), 422),
    ],
)
async def test_what_the_server_refuses_for_good_is_a_refusal_to_the_gateway(
    http: httpx.AsyncClient, body: bytes, status: int
) -> None:
    answer = await ask(http, "POST", "/series", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status, _is_about_the_report(answer)) == (status, True)


async def test_a_fault_of_the_servers_own_is_answered_like_all_else(tmp_path: Path) -> None:
    app = create_app(ServerSettings(database_url=empty_database(tmp_path)))
    audited: list[dict[str, Any]] = []
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        app.state.audit = lambda **fields: audited.append(fields)
        app.state.database = None
        response = await client.get("/series")
    assert (response.status_code, type(response.json()["detail"])) == (500, str)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert [fields["status"] for fields in audited] == [500]


async def test_conflict_is_kept_and_the_answer_says_so(http: httpx.AsyncClient) -> None:
    await http.post("/series", json=MINIMAL_REPORT)
    response = await http.post("/series", json=MINIMAL_REPORT | {"PatientID": "another"})
    assert (response.status_code, response.json()["Conflicts"]) == (200, 1)
    assert response.json()["PatientID"] == MINIMAL_REPORT["PatientID"]


async def test_unknown_series_is_404(http: httpx.AsyncClient) -> None:
    assert (await http.get("/series/1.2.3")).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        *("StudyDate=2026", "StudyDate=20260101-x", "StudyDate=2026010120260102", "StudyDate=-", "StudyDate="),
        *("UpdatedSince=1", "UpdatedUntil=2026-01-01T00:00:00", "Incomplete=maybe", "order=oldest", "Verdict=whole"),
        *("limit=0", "limit=1001", "limit=x", "after=a%5Cb", "StudyInstanceUID=a%5Cb", "Modality=" + "x" * 17),
    ],
)
async def test_bad_query_is_422_naming_it(http: httpx.AsyncClient, query: str) -> None:
    response = await http.get(f"/series?{query}")
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", query.split("=", maxsplit=1)[0]]


@pytest.mark.parametrize("number", ["1_0", "%2B5", "+5", "5.0", "%D9%A5", "0x5", ""])
async def test_a_number_is_of_digits(http: httpx.AsyncClient, number: str) -> None:
    for path in ("series?limit", "changes?limit", "changes?since", "conflicts?limit", "overview/series?before"):
        answer = await http.get(f"/{path}={number}")
        assert (answer.status_code, answer.json()["detail"][0]["loc"][0]) == (422, "query"), path
    header = [(b"Last-Event-ID", unquote_to_bytes(number))]
    answer = await http.get("/changes/stream", headers=header)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["header", "last-event-id"])


async def test_pages_are_followed_by_next(http: httpx.AsyncClient) -> None:
    for n in range(7):
        await http.post("/series", json=make_report("1", series=f"1.{n}").model_dump(mode="json"))
    seen: list[str] = []
    page: dict[str, Any] = {"next": None}
    for _ in range(3):
        parameters: dict[str, Any] = {"limit": 3, "PatientID": "P1"} | ({"after": page["next"]} if page["next"] else {})
        page = (await http.get("/series", params=parameters)).json()
        seen += [record["SeriesInstanceUID"] for record in page["series"]]
    assert page["next"] is None
    assert seen == [f"1.{n}" for n in range(7)]


@pytest.mark.parametrize(
    "filters",
    [{"order": "newest"}, {"Verdict": "idle"}, {"StudyDate": "20260101-20260102"}, {"UpdatedSince": "2020-01-01"}],
)
async def test_pages_in_every_order_are_followed_by_next(http: httpx.AsyncClient, filters: dict[str, str]) -> None:
    for n in range(5):
        report = make_report("1", series=f"1.{n}").model_dump(mode="json")
        await http.post("/series", json=report | {"Attributes": {"StudyDate": [f"2026010{1 + n % 2}"]}})
    seen: list[str] = []
    page: dict[str, Any] = {"next": None}
    for _ in range(3):
        parameters: dict[str, Any] = {"limit": 2, **filters} | ({"after": page["next"]} if page["next"] else {})
        page = (await http.get("/series", params=parameters)).raise_for_status().json()
        seen += [record["SeriesInstanceUID"] for record in page["series"]]
    assert page["next"] is None
    assert sorted(seen) == [f"1.{n}" for n in range(5)]
    wrong = (await http.get("/series", params=filters | {"after": "1.2"})).json()
    assert wrong["detail"][0]["loc"] == ["query", "after"]


async def test_a_table_has_every_series_that_matches_and_no_formula(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.listing.AT_ONCE", 2)
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", 'Doe, "Jane"\nX', "Müller^Jörg"]
    for n, name in enumerate(names):
        attributes = {"Modality": ["CT"], "StudyDate": ["20260131"], "SeriesDescription": ["a", "b"]}
        report = make_report("1", series=f"1.{n}").model_dump(mode="json") | {"Attributes": attributes}
        await http.post("/series", json=report | {"PatientName": name, "PatientID": None})
    for filters in ({}, {"StudyDate": "20260131"}, {"order": "newest", "Modality": "CT"}):
        answer = await http.get("/series.csv", params=filters)
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        rows = {row["SeriesInstanceUID"]: row for row in csv.DictReader(io.StringIO(answer.text, newline=""))}
        assert len(rows) == len(answer.text.split("\r\n")) - 2 == len(names)
        told = [rows[f"1.{n}"]["PatientName"] for n in range(len(names))]
        assert told == [*(f"'{name}" for name in names[:5]), *names[5:]]
        assert {(row["SeriesDescription"], row["PatientID"], row["NumInstances"]) for row in rows.values()} == {
            ("a\\b", "", "1")
        }
    assert (await http.get("/series.csv", params={"Modality": "MR"})).text.count("\r\n") == 1
    assert (await http.get("/series.csv", params={"limit": 3})).status_code == 422
    assert (await http.get("/series.csv", params={"Verdict": "whole"})).status_code == 422


async def test_what_came_incomplete_is_found(http: httpx.AsyncClient) -> None:
    more = {"Source": "CT1 CT", "ExpectedInstances": 3, "ExpectedFrom": "tags"}
    for n, sops in enumerate(("12", "123")):
        await http.post("/series", json=make_report(*sops, series=f"1.{n}").model_dump(mode="json") | more)
    (found,) = (await http.get("/series", params={"Incomplete": "true", "order": "newest"})).json()["series"]
    assert (found["SeriesInstanceUID"], found["Missing"], found["Source"]) == ("1.0", 1, "CT1 CT")
    (found,) = (await http.get("/series", params={"Incomplete": "false"})).json()["series"]
    assert found["SeriesInstanceUID"] == "1.1"
    for elsewhere in ({"Verdict": "capped"}, {"Source": "CT2 CT"}, {"UpdatedUntil": "2020-01-01"}, {"StudyDate": "-2"}):
        answer = await http.get("/series", params={"Conflicts": "false"} | elsewhere)
        assert answer.json().get("series", []) == []


async def test_what_stays_incomplete_is_measured(http: httpx.AsyncClient, app: FastAPI) -> None:
    more = {"ExpectedInstances": 3, "ExpectedFrom": "tags"}
    await http.post("/series", json=make_report("1").model_dump(mode="json") | more)
    latest = app.state.database.latest
    now = datetime.now(UTC)
    counts = [await latest.incomplete(now + timedelta(hours=hours)) for hours in (0, 2, 23, 25)]
    assert counts == [0, 1, 1, 0]
    assert "server_incomplete_series 0.0" in (await http.get("/metrics")).text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/series?verdict=idle", "did you mean Verdict?"),
        ("/series?Modalities=CT", "did you mean Modality?"),
        ("/series/1.2.3?x=", "known: none"),
        ("/changes?from=3", "known: since, limit"),
        ("/changes/stream?sinc=3", "did you mean since?"),
        ("/overview/series?serch=x", "did you mean search?"),
        ("/conflicts?resolve=true", "did you mean resolved?"),
        ("/completions?Verdict=idle", "known: none"),
    ],
)
async def test_an_unknown_parameter_is_422_and_names_the_near_one(
    http: httpx.AsyncClient, path: str, said: str
) -> None:
    answer = await http.get(path)
    assert answer.status_code == 422
    assert said in answer.json()["detail"][0]["msg"]


async def test_what_others_add_to_every_request_is_let_through(http: httpx.AsyncClient) -> None:
    assert (await http.get("/series?_=1&access_token=x")).status_code == 200


async def test_health_is_live_and_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health/live")).json() == {"status": "live", "version": version()}
    assert (await http.get("/health/ready")).json() == {"status": "ready", "version": version()}


async def test_broken_database_is_503_with_retry_after(http: httpx.AsyncClient, app: FastAPI, tmp_path: Path) -> None:
    await http.get("/series")  # the connections of the database that works
    before = threading.enumerate()
    (tmp_path / "broken.db").mkdir()
    unreachable = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/broken.db")
    broken = Engine(unreachable, unreachable)
    for keys in (app.state.keys, Keys(broken)):  # the handler meets it, and then the guard
        app.state.database.engine, app.state.keys = broken, keys
        for request in (http.get("/health/ready"), http.get("/series"), http.post("/series", json=MINIMAL_REPORT)):
            response = await request
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) >= 1
        assert (await http.get("/health/live")).status_code == 200
    app.state.follower.end()
    for thread in threading.enumerate():  # aiosqlite's of the failed connections still want this loop
        if thread not in before and not thread.name.startswith("AnyIO"):  # whose threads wait for more to do
            await asyncio.to_thread(thread.join, 10)


async def test_openapi_shows_the_examples(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["info"]["version"] == version()
    content = document["paths"]["/series"]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]["minimal"]["value"] == MINIMAL_REPORT
    named = {f"/series/{{SeriesInstanceUID}}{part}" for part in ("", "/timeline", "/instances", "/declaration")}
    of_study = ("", "/series", "/timeline", "/declaration", "/counts")
    named |= {f"/studies/{{StudyInstanceUID}}{part}" for part in of_study}
    others = {"/conflicts", "/conflicts/{digest}", "/changes", "/changes/stream"}
    others |= {"/studies", "/studies.csv", "/completions/studies"}
    others |= {"/series", "/series.csv", "/completions", "/sources", "/metrics", "/health/live", "/health/ready"}
    others |= {
        "/session",
        "/gateways",
        "/gateways/{GatewayID}",
        "/gateways/{GatewayID}/orders",
        "/overview/series",
        "/overview/stream",
        "/webhooks/{Id}/untold",
    }
    assert {path for path in document["paths"] if not path.startswith("/dicom-web/")} == named | others


async def test_the_first_requests_of_a_process_are_answered_also_at_the_same_time(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    described_by = set()
    describe = fastapi.openapi.utils.get_openapi_path

    def path(**route: Any) -> Any:
        described_by.add(threading.current_thread().name)
        return describe(**route)

    monkeypatch.setattr(fastapi.openapi.utils, "get_openapi_path", path)
    paths = ["/series?limit=1", "/sources?limit=1", "/overview/series?limit=1", "/changes?limit=1", "/openapi.json"]
    answers = await asyncio.gather(*(http.get(path) for path in paths))
    assert {answer.status_code for answer in answers} == {200}
    assert described_by == {threading.current_thread().name}  # in two at once, one of them finds half of it


@pytest.mark.peer("postgresql")
async def test_a_postgresql_that_answers_before_its_disk_is_warned_of_at_the_start(postgresql_url: str) -> None:
    for off in ([], ["synchronous_commit"]):
        engine, name = create_async_engine(postgresql_url), make_url(postgresql_url).database
        async with engine.begin() as connection:
            for setting in off:
                await connection.execute(text(f'ALTER DATABASE "{name}" SET {setting} = off'))
        await engine.dispose()
        app = create_app(ServerSettings(database_url=postgresql_url))
        with capture_logs() as logs:
            async with app.router.lifespan_context(app):
                pass
        told = [entry for entry in logs if entry["event"] == "database.not_durable"]
        assert [entry["off"] for entry in told] == ([off] if off else [])
        assert all(f"SET {setting} = on" in told[0]["cure"] for setting in off)
