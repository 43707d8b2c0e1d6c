"""Keys, limits and the audit log, through the whole application on both databases."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from access import FAILURES, FAILURES_FADE_S, Buckets
from keys import Keys
from schema import api_keys
from server import MINIMAL_REPORT, create_app
from settings import ServerSettings
from tests.factories import make_report

ASK = Callable[..., Any]
KNOWN = f"/series/{MINIMAL_REPORT['SeriesInstanceUID']}"


@asynccontextmanager
async def application(database_url: str, **settings: Any) -> AsyncIterator[FastAPI]:
    app = create_app(ServerSettings(database_url=database_url, **settings))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[FastAPI]:
    async with application(database_url) as app:
        yield app


def asking(
    app: FastAPI, key: str | None = None, peer: str = "127.0.0.1", host: str = "127.0.0.1:8000", **headers: str
) -> httpx.AsyncClient:
    """A client of this address, with this key."""
    transport = httpx.ASGITransport(app, client=(peer, 4711))
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)


async def key(app: FastAPI, *scopes: str, expires_in_s: float | None = None) -> str:
    keys: Keys = app.state.keys
    expires_at = None if expires_in_s is None else datetime.now(UTC) + timedelta(seconds=expires_in_s)
    return (await keys.create("test", scopes, expires_at))[1]


# --- without any key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_served_while_there_is_no_key(app: FastAPI, host: str, peer: str) -> None:
    async with asking(app, host=host, peer=peer) as http:
        assert (await http.get("/series")).status_code == 200


@pytest.mark.parametrize(
    "asks",
    [
        {"peer": "10.0.0.7"},
        {"peer": "::ffff:10.0.0.7"},
        {"X-Forwarded-Proto": "https"},
        {"Via": "1.1 proxy"},
        {"peer": ""},
        {"host": "evil.example"},  # a web page whose name now points here
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
    ],
)
async def test_others_are_told_how_to_make_a_key(app: FastAPI, asks: dict[str, str]) -> None:
    async with asking(app, **asks) as http:
        response = await http.get("/series")
    assert response.status_code == 401
    assert "python server.py keys create" in response.json()["detail"]
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_health_needs_no_key_and_tells_nothing_else(app: FastAPI) -> None:
    await key(app, "admin")
    async with asking(app, peer="10.0.0.7") as http:
        for path in ("/health/live", "/health/ready"):
            response = await http.get(path)
            assert (response.status_code, response.json().keys()) == (200, {"status"})


# --- with keys --------------------------------------------------------------------------------------------------


async def test_from_the_first_key_on_this_machine_needs_one_too_even_when_all_are_revoked(app: FastAPI) -> None:
    made = await key(app, "series:read")
    async with asking(app) as http:
        assert (await http.get("/series")).status_code == 401
    await app.state.keys.revoke(made.split("_")[1])
    async with asking(app) as http:
        assert (await http.get("/series")).status_code == 401


@pytest.mark.parametrize(
    ("scope", "read", "write", "resolve"),
    [("series:read", 200, 403, 403), ("series:write", 403, 201, 403), ("admin", 200, 201, 404)],
)
async def test_a_key_may_do_what_its_scope_says(app: FastAPI, scope: str, read: int, write: int, resolve: int) -> None:
    async with asking(app, await key(app, scope), peer="10.0.0.7", host="gateway.example") as http:
        assert (await http.get("/series")).status_code == read
        assert (await http.get("/changes")).status_code == read
        assert (await http.post("/series", json=MINIMAL_REPORT)).status_code == write
        answer = await http.post(f"/conflicts/{'0' * 64}", json={"Resolution": "dismiss"})
        assert answer.status_code == resolve


async def bad_keys(app: FastAPI) -> dict[str, str | None]:
    """A key of each kind that must not open anything."""
    revoked = await key(app, "admin")
    await app.state.keys.revoke(revoked.split("_")[1])
    good = await key(app, "admin")
    return {
        "none": None,
        "empty": "",
        "foreign": "sgk_000000000000_secret",
        "no form": "x" * 5000,
        "other secret": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "other prefix": good.replace("sgk_", "abc_"),
        "id only": good.rpartition("_")[0],
        "revoked": revoked,
        "expired": await key(app, "admin", expires_in_s=-1),
        "under-scoped": await key(app, "series:write"),
    }


async def test_no_bad_key_tells_whether_a_series_exists(app: FastAPI) -> None:
    async with asking(app) as http:
        assert (await http.post("/series", json=MINIMAL_REPORT)).status_code == 201
    peers: set[str] = set()
    for kind, bad in (await bad_keys(app)).items():
        answers = []
        peer = f"10.1.0.{len(peers)}"
        peers.add(peer)
        async with asking(app, bad, peer=peer) as http:
            for path in (KNOWN, "/series/9.9.9", f"{KNOWN}/timeline", "/series/no-uid", "/nowhere"):
                response = await http.get(path)
                answers.append((response.status_code, response.content, response.headers["WWW-Authenticate"]))
        assert {status for status, _, _ in answers} == {403 if kind == "under-scoped" else 401}, kind
        assert len(set(answers)) == 1, kind


async def test_without_a_good_key_the_body_is_not_even_read(app: FastAPI) -> None:
    await key(app, "admin")
    async with asking(app) as http:
        for body, status in ((b"no json", 401), (b"{", 401), (b"x" * 2**25, 413)):
            response = await http.post("/series", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == status


@pytest.mark.parametrize("scheme", ["Basic", "bearer", "BEARER"])
async def test_the_scheme_is_bearer_in_any_case(app: FastAPI, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {await key(app, 'admin')}"}
    async with asking(app, **headers) as http:
        assert (await http.get("/series")).status_code == (401 if scheme == "Basic" else 200)


async def test_a_key_is_not_in_the_database(app: FastAPI) -> None:
    made = await key(app, "admin")
    stored = str(await app.state.database.engine.read(select(api_keys)))
    assert made.rpartition("_")[2] not in stored


# --- limits -----------------------------------------------------------------------------------------------------


async def test_wrong_keys_are_limited_by_address(app: FastAPI) -> None:
    good = await key(app, "admin")
    async with asking(app, "wrong", peer="10.0.0.7") as http:
        statuses = [(await http.get("/series")).status_code for _ in range(FAILURES + 2)]
        assert statuses == [401] * FAILURES + [429] * 2
        assert 0 < int((await http.get("/series")).headers["Retry-After"]) <= FAILURES_FADE_S + 1
    async with asking(app, "wrong", peer="10.0.0.8") as http:
        assert (await http.get("/series")).status_code == 401
    async with asking(app, good, peer="10.0.0.7") as http:  # behind the same proxy as the one with the wrong key
        assert (await http.get("/series")).status_code == 200


async def test_addresses_of_one_ipv6_network_count_as_one(app: FastAPI) -> None:
    await key(app, "admin")
    for n in range(FAILURES):
        async with asking(app, "wrong", peer=f"2001:db8::{n}") as http:
            assert (await http.get("/series")).status_code == 401
    async with asking(app, "wrong", peer="2001:db8::ffff") as http:
        assert (await http.get("/series")).status_code == 429
    async with asking(app, "wrong", peer="2001:db9::1") as http:
        assert (await http.get("/series")).status_code == 401


async def test_an_ipv4_address_is_itself_on_an_ipv6_socket(app: FastAPI) -> None:
    await key(app, "admin")
    for _ in range(FAILURES + 1):
        async with asking(app, "wrong", peer="::ffff:10.0.0.7") as http:
            last = (await http.get("/series")).status_code
    assert last == 429
    async with asking(app, "wrong", peer="::ffff:10.0.0.8") as http:
        assert (await http.get("/series")).status_code == 401


async def test_scopes_are_those_of_the_path_behind_a_root_path(app: FastAPI) -> None:
    made = await key(app, "series:write")
    transport = httpx.ASGITransport(app, root_path="/gw")
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/gw") as http:
        assert (await http.get("/health/live")).status_code == 200
        http.headers["Authorization"] = f"Bearer {made}"
        assert (await http.post("/series", json=MINIMAL_REPORT)).status_code == 201
        assert (await http.get("/series")).status_code == 403


def test_a_bucket_fills_up_again_with_time_and_forgets_the_oldest() -> None:
    now = 0.0
    bucket = Buckets(2, 10.0, clock=lambda: now)
    for _ in range(2):
        assert bucket.wait_s("a") == 0
        bucket.take("a")
    assert bucket.wait_s("a") == 10.0
    now = 4.0
    assert bucket.wait_s("a") == 6.0
    now = 1000.0
    assert bucket.wait_s("a") == 0
    bucket.take("a")
    assert bucket.wait_s("a") == 0  # never more than its size: one of two is left
    for n in range(20_000):
        bucket.take(str(n))
    assert len(bucket._left) == 10_000


async def test_requests_of_one_key_are_limited_and_others_are_not(database_url: str) -> None:
    async with application(database_url, requests_per_s=1) as app:
        one, other = await key(app, "admin"), await key(app, "admin")
        async with asking(app, one) as http:
            statuses = [(await http.get("/series")).status_code for _ in range(4)]
            assert (statuses[:2], statuses[-1]) == ([200, 200], 429)
            assert int((await http.get("/series")).headers["Retry-After"]) >= 1
        async with asking(app, other) as http:
            assert (await http.get("/series")).status_code == 200


async def test_every_answer_has_the_headers_that_keep_a_browser_from_harm(app: FastAPI) -> None:
    async with asking(app) as http, asking(app, peer="10.0.0.7") as stranger:
        for response in (await http.get("/series"), await http.get("/nowhere"), await stranger.get("/series")):
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]


# --- the audit log ----------------------------------------------------------------------------------------------


async def test_the_audit_log_says_who_did_what_with_which_outcome_and_names_no_patient(
    database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    async with application(database_url, audit_path=path) as app:
        made = await key(app, "series:write")
        async with asking(app, made, peer="10.0.0.7") as http:
            report = make_report("1", patient_id="Secret^Id").model_dump(mode="json")
            await http.post("/series", json=report | {"PatientName": "Secret^Name"})
            await http.get(KNOWN, params={"PatientID": "Secret^Id"})
        async with asking(app, "wrong") as http:
            await http.get("/series/Secret^Name")
            await http.get("/Secret^Name")
            await http.get("/health/ready")
    text = path.read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    who = f"{made.split('_')[1]} test"
    assert [(e["who"], e["method"], e["route"], e["status"], e["peer"]) for e in entries] == [
        (who, "POST", "/series", 201, "10.0.0.7"),
        (who, "GET", "-", 403, "10.0.0.7"),
        ("-", "GET", "-", 401, "127.0.0.1"),
        ("-", "GET", "-", 401, "127.0.0.1"),
    ]
    assert all(datetime.fromisoformat(e["timestamp"]).tzinfo for e in entries)
    assert "Secret" not in text
    assert made.rpartition("_")[2] not in text
    assert path.stat().st_mode & 0o777 == 0o600
