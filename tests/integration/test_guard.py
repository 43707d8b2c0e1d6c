"""What stands before every route beside keys: headers, faults and refusals in JSON, the audit log, and measures."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from api.access import DOCS, HEADERS, ITS_OWN, NOTHING_ELSE, REMEMBERED, Buckets, CannotAudit, audit_log
from common import metrics
from common.settings import ServerSettings
from server import create_app
from storage.engine import DatabaseUnavailable
from tests.rig.factories import SERIES, make_report, make_state
from tests.rig.serving import empty_database

READ = ("series:read",)


@asynccontextmanager
async def application(folder: Path, **settings: Any) -> AsyncIterator[FastAPI]:
    app = create_app(ServerSettings(database_url=empty_database(folder), **settings))

    @app.get("/fault")
    async def fault() -> None:
        raise RuntimeError("Secret^Name")

    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def app(tmp_path: Path, audit: Path) -> AsyncIterator[FastAPI]:
    async with application(tmp_path, audit_path=audit) as app:
        yield app


def asking(app: FastAPI, peer: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(peer, 4711), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)


def entries(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.read_text().splitlines()]


def measured(method: str, route: str, status: int) -> float:
    return (
        metrics.SERVER.get_sample_value(
            "server_requests_total", {"method": method, "route": route, "status": str(status)}
        )
        or 0.0
    )


async def test_a_fault_of_ours_is_answered_in_json_that_quotes_nothing_and_is_audited(
    app: FastAPI, audit: Path
) -> None:
    async with asking(app) as http:
        answer = await http.get("/fault")
    assert (answer.status_code, answer.headers["Connection"]) == (500, "close")
    assert "Secret" not in answer.text
    assert "detail" in answer.json()
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    (entry,) = entries(audit)
    assert (entry["route"], entry["status"]) == ("/fault", 500)


@pytest.mark.parametrize(
    ("path", "policy", "cached"),
    [
        ("/series", NOTHING_ELSE, "no-store"),
        ("/docs", DOCS, "no-store"),
        ("/", ITS_OWN, "no-cache"),
        ("/health/live", NOTHING_ELSE, "no-store"),
    ],
)
async def test_every_answer_says_what_a_browser_may_do_with_it(
    app: FastAPI, path: str, policy: str, cached: str
) -> None:
    async with asking(app) as http:
        answer = await http.get(path)
    assert answer.headers["Content-Security-Policy"] == policy
    wanted = HEADERS | {"Cache-Control": cached}
    assert {name: answer.headers[name] for name in wanted} == wanted


@pytest.mark.parametrize("path", ["/series/1.2%0a", "/%00", "/series%7f"])
async def test_a_path_with_control_characters_is_refused(app: FastAPI, path: str) -> None:
    async with asking(app) as http:
        assert (await http.get(path)).status_code == 400


async def test_a_database_that_is_away_is_no_wrong_key(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: str) -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(app.state.keys, "recognize", away)
    async with asking(app, Authorization="Bearer sgk_000000000000_secret") as http:
        answers = [await http.get("/series") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {503}
    assert int(answers[0].headers["Retry-After"]) > 0


# --- what is known of who asks ---


def test_buckets_forget_who_was_seen_longest_ago() -> None:
    buckets = Buckets(1, 10.0, clock=lambda: 0.0)
    for n in range(REMEMBERED):
        buckets.take(str(n))
    buckets.take("0")  # seen again
    buckets.take("new")
    assert [buckets.wait_s(name) > 0 for name in ("0", "1", "2", "new")] == [True, False, True, True]


async def test_requests_of_this_machine_without_a_key_are_limited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.access.Buckets", partial(Buckets, clock=lambda: 0.0))  # which stands still
    async with application(tmp_path, requests_per_s=1) as app, asking(app) as http:
        answers = [await http.get("/series") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert int(answers[-1].headers["Retry-After"]) == 2


# --- the audit log ---


async def test_what_was_done_is_in_the_audit_file_at_once_with_its_series(app: FastAPI, audit: Path) -> None:
    async with asking(app) as http:
        await http.post("/series", json=make_report("1").model_dump(mode="json"))
        await http.get(f"/series/{SERIES}")
        await http.get("/series/Secret^Name")
    told = [(e["method"], e["route"], e.get("series_instance_uid"), e["who"]) for e in entries(audit)]
    assert told == [
        ("POST", "/series", None, "this machine"),
        ("GET", "/series/{SeriesInstanceUID}", SERIES, "this machine"),
        ("GET", "/series/{SeriesInstanceUID}", None, "this machine"),
    ]


async def test_what_comes_each_second_is_audited_only_where_it_is_refused(app: FastAPI, audit: Path) -> None:
    async with asking(app) as http:
        assert (await http.put("/gateways/gw", json=make_state("gw"))).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/health/ready")).status_code == 200
        assert (await http.get("/")).status_code == 200
        assert (await http.delete("/session")).status_code == 204
        assert not audit.read_text()
        assert (await http.put("/gateways/gw", json={})).status_code == 422
        assert (await http.get("/session")).status_code == 200
    assert [(e["method"], e["route"], e["status"]) for e in entries(audit)] == [
        ("PUT", "/gateways/{GatewayID}", 422),
        ("GET", "/session", 200),
    ]


def test_an_audit_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(CannotAudit, match="SERVER_AUDIT_PATH"), audit_log(tmp_path):
        pass


def test_an_audit_file_grows_by_what_is_written_and_one_that_is_full_is_said(audit: Path) -> None:
    for _ in range(2):
        with audit_log(audit) as write:
            write(status=200)
    assert [entry["event"] for entry in entries(audit)] == ["request.audited"] * 2
    with capture_logs() as logs, audit_log(Path("/dev/full")) as write:
        write(status=200)
    assert [entry["event"] for entry in logs] == ["audit.unwritten"]


def test_a_line_that_a_power_cut_has_torn_spoils_no_other_line(audit: Path) -> None:
    audit.write_text('{"event": "request.audited", "sta')
    for _ in range(2):
        with audit_log(audit) as write:
            write(status=200)
    torn, *whole = audit.read_text().splitlines()
    assert [json.loads(line)["status"] for line in whole] == [200, 200]
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(torn)


def test_without_a_file_it_is_the_log_that_tells() -> None:
    with capture_logs() as logs, audit_log(None) as write:
        write(status=200)
    assert [(entry["event"], entry["status"]) for entry in logs] == [("request.audited", 200)]


# --- measures ---


async def test_requests_are_counted_by_what_they_are_and_made_up_methods_as_one(app: FastAPI) -> None:
    kinds = (("GET", "/series", 200), ("GET", "-", 404), ("other", "-", 403), ("GET", "/series", 400))
    before = [measured(*kind) for kind in kinds]
    async with asking(app) as http:
        await http.get("/series")
        await http.get("/nowhere")
        await http.request("BREW", "/coffee", headers={"Origin": "http://evil.example"})
    after = [measured(*kind) for kind in kinds]
    assert [later - earlier for earlier, later in zip(before, after, strict=True)] == [1, 1, 1, 0]
