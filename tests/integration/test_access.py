"""Keys, limits and the audit log, through the whole application on both databases."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine
from fastapi import FastAPI
from sqlalchemy import select

from api.access import COOKIE, FAILURES, FAILURES_FADE_S, Buckets
from api.examples import MINIMAL_REPORT
from common.settings import ServerSettings
from server import create_app
from storage.key_reader import SCOPES
from storage.keys import Keys
from storage.schema import api_keys
from tests.rig.factories import make_report

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


PROXYS_HEADERS = (
    *("Forwarded", "X-Real-IP", "X-Forwarded", "X-Forwarded-Host", "X-Original-Forwarded-For", "CF-Connecting-IP"),
    *("CF-Connecting-IPv6", "True-Client-IP", "X-Client-IP", "Fastly-Client-IP", "X-Cluster-Client-IP", "CDN-Loop"),
    *("X-Azure-ClientIP", "X-Envoy-External-Address", "X-Original-Host", "X-Remote-Addr", "X-Appengine-User-IP"),
)
# --- without any key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:8000", "localhost.", "LocalHost.:80"]
)
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
        {"host": "localhost.evil.example"},
        *({name: "127.0.0.1"} for name in PROXYS_HEADERS),
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
            assert (response.status_code, response.json().keys()) == (200, {"status", "version"})


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
        "id only": good[: good.index("_", 4)],
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
        for body, status in ((b"no json", 401), (b"{", 401), (b"x" * 2**25, 401)):
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
    assert made.split("_", 2)[2] not in stored


# --- limits -----------------------------------------------------------------------------------------------------


async def test_an_empty_key_is_called_empty_also_where_none_is_needed(app: FastAPI) -> None:
    """`-H "Authorization: Bearer $KEY"` without a KEY."""
    async with asking(app) as http:
        response = await http.get("/series", headers={"Authorization": "Bearer"})
    assert (response.status_code, "empty" in response.json()["detail"]) == (401, True)


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


async def test_wrong_sessions_count_like_wrong_keys(app: FastAPI) -> None:
    good = await key(app, "series:read")
    session = await app.state.keys.session(good.split("_")[1])
    wrong = ("x", "0123456789ab.1.00", f"{session[:-1]}{'0' if session[-1] != '0' else '1'}")
    async with asking(app, peer="10.0.0.7") as http:
        statuses = []
        for n in range(FAILURES):
            http.headers["Cookie"] = f"{COOKIE}={wrong[n % len(wrong)]}"
            statuses.append((await http.get("/series")).status_code)
        assert statuses == [401] * FAILURES
        assert (await http.head("/series")).status_code == 429
        http.headers["Cookie"] = f"{COOKIE}={session}"  # a good one is let in all the same
        assert (await http.get("/series")).status_code == 200
    async with asking(app, "wrong", peer="10.0.0.7") as http:
        assert (await http.get("/series")).status_code == 429  # they are counted together


async def test_a_foreign_session_is_none_while_there_is_no_key(app: FastAPI) -> None:
    async with asking(app, Cookie=f"{COOKIE}=of-another-server-on-this-machine") as http:
        assert [(await http.get("/series")).status_code for _ in range(FAILURES + 2)] == [200] * (FAILURES + 2)


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


@pytest.mark.parametrize("peer", ["unix:", "a:b", ""])
async def test_a_proxy_may_name_a_peer_that_has_no_address(app: FastAPI, peer: str) -> None:
    """As nginx behind a Unix socket does, in X-Forwarded-For."""
    async with asking(app, await key(app, "series:read"), peer=peer) as http:
        assert (await http.get("/series")).status_code == 200
    async with asking(app, "wrong", peer=peer) as http:
        assert [(await http.get("/series")).status_code for _ in range(FAILURES + 1)] == [401] * FAILURES + [429]


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
    assert made.split("_", 2)[2] not in text
    assert path.stat().st_mode & 0o777 == 0o600


# --- a browser's session ----------------------------------------------------------------------------------------


@asynccontextmanager
async def logged_in(app: FastAPI, made: str, **asks: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has shown this key once."""
    async with asking(app, **asks) as browser:
        answer = await browser.post("/session", headers={"Authorization": f"Bearer {made}"})
        assert answer.status_code == 200
        yield browser


async def test_a_cookie_alone_reads_and_does_nothing_else(app: FastAPI) -> None:
    async with logged_in(app, await key(app, "admin"), peer="10.0.0.7", host="gateway.example") as browser:
        assert (await browser.get("/series")).status_code == 200
        assert (await browser.head("/series")).status_code == 200
        assert (await browser.post("/series", json=MINIMAL_REPORT)).status_code == 401
        assert (await browser.post(f"/conflicts/{'0' * 64}", json={"Resolution": "dismiss"})).status_code == 403
        assert (await browser.post("/session")).status_code == 401  # it does not prolong itself either


async def test_the_cookie_is_out_of_scripts_and_other_sites_reach_and_is_not_the_key(app: FastAPI) -> None:
    made = await key(app, "series:read")
    for scheme, secure in (("http", False), ("https", True)):
        async with logged_in(app, made) as browser:
            browser.base_url = httpx.URL(f"{scheme}://127.0.0.1")
            answer = await browser.post("/session", headers={"Authorization": f"Bearer {made}"})
        cookie = answer.headers["Set-Cookie"]
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= attributes
        assert ("secure" in attributes) == secure
        assert made.split("_", 2)[2] not in cookie


async def test_the_cookie_is_for_what_is_behind_a_root_path_only(app: FastAPI) -> None:
    made = await key(app, "series:read")
    transport = httpx.ASGITransport(app, root_path="/gw")
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/gw") as browser:
        answer = await browser.post("/session", headers={"Authorization": f"Bearer {made}"})
        assert "; Path=/gw;" in answer.headers["Set-Cookie"]
        assert (await browser.get("/series")).status_code == 200
        assert (await browser.get("http://127.0.0.1/orthanc")).request.headers.get("Cookie") is None
        await browser.delete("/session")
        assert (await browser.get("/series")).status_code == 401


async def test_a_session_ends_with_its_key_with_time_and_when_the_browser_says_so(app: FastAPI) -> None:
    keys: Keys = app.state.keys
    made, short = await key(app, "series:read"), await key(app, "series:read", expires_in_s=3600)
    third = await key(app, "series:read")
    async with (
        logged_in(app, made) as revoked,
        logged_in(app, short) as expiring,
        logged_in(app, third) as leaving,
    ):
        assert [(await b.get("/series")).status_code for b in (revoked, expiring, leaving)] == [200] * 3
        await keys.revoke(made.split("_")[1])
        assert (await leaving.delete("/session")).status_code == 204
        with time_machine.travel(datetime.now(UTC) + timedelta(hours=2), tick=True):
            assert [(await b.get("/series")).status_code for b in (revoked, expiring, leaving)] == [401] * 3
    async with logged_in(app, await key(app, "series:read")) as browser:
        kept = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}  # by a browser that ignores Max-Age
    async with asking(app, **kept) as browser:
        assert (await browser.get("/series")).status_code == 200
        with time_machine.travel(datetime.now(UTC) + timedelta(hours=12, seconds=1), tick=True):
            assert (await browser.get("/series")).status_code == 401


async def test_no_made_up_session_lets_in(app: FastAPI) -> None:
    made, other = await key(app, "admin"), await key(app, "admin")
    keys: Keys = app.state.keys
    good = await keys.session(made.split("_")[1])
    assert good is not None
    id, ends_at, number, signature = good.split(".")
    assert (await keys.recognize_session(good)) is not None
    made_up = (
        "",
        "..",
        id,
        made,
        f"{id}.{ends_at}.{number}.",
        f"{id}.{int(ends_at) + 1}.{number}.{signature}",
        f"{id}.{ends_at}.{number[::-1]}0.{signature}",
        f"{id}.{ends_at}.{number}.{'0' * 64}",
        f"{id}.{ends_at}.{number}.{await keys.token(good)}",
        f"{id}.{ends_at}.{number}.{signature}.{signature}",
        f"{id}.{ends_at}.{signature}",
        f"{other.split('_')[1]}.{ends_at}.{number}.{signature}",
        f"{id}.x.{number}.{signature}",
        f'"\\000{id}.{ends_at}.{number}.{signature}"',
        f"{id}.{'9' * 5000}.{number}.{signature}",
    )
    for n, bad in enumerate(made_up):
        async with asking(app, peer=f"10.0.0.{n}", Cookie=f"{COOKIE}={bad}") as http:
            assert (await http.get("/series")).status_code == 401, bad
    async with asking(app, Cookie=f"{COOKIE}={good}") as http:
        assert (await http.get("/series")).status_code == 200


async def test_a_wrong_key_gets_no_session_and_is_limited(app: FastAPI) -> None:
    write = await key(app, "series:write")
    async with asking(app, "wrong", peer="10.0.0.7") as http:
        answers = [await http.post("/session") for _ in range(FAILURES + 1)]
    assert [answer.status_code for answer in answers] == [401] * FAILURES + [429]
    async with asking(app, write, peer="10.0.0.8") as http:
        answers.append(await http.post("/session"))
    assert answers[-1].status_code == 403
    assert not any("Set-Cookie" in answer.headers for answer in answers)


async def test_a_bearer_key_wins_over_a_session(app: FastAPI) -> None:
    async with logged_in(app, await key(app, "admin")) as browser:
        assert (await browser.get("/series", headers={"Authorization": "Bearer wrong"})).status_code == 401


async def test_what_a_browser_tells_a_proxy_does_not_stand_in_a_sessions_way(app: FastAPI) -> None:
    async with logged_in(app, await key(app, "admin")) as browser:
        basic = {"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}
        assert (await browser.get("/series", headers=basic)).status_code == 200
        assert (await browser.post("/series", headers=basic, json=MINIMAL_REPORT)).status_code == 401


async def test_every_valid_key_learns_whose_it_is(app: FastAPI) -> None:
    async with asking(app) as http:
        everything = (await http.get("/session")).json()
        assert everything == {"Who": "this machine", "Scopes": list(SCOPES), "Viewer": None, "Token": None}
        answer = await http.post("/session")  # nothing to remember
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (200, False)
    for scopes, may in ((("series:write",), ["series:write"]), (("admin",), list(SCOPES))):
        made = await key(app, *scopes)
        async with asking(app, made, peer="10.0.0.7") as http:
            told = {"Who": f"{made.split('_')[1]} test", "Scopes": may, "Viewer": None, "Token": None}
            assert (await http.get("/session")).json() == told
    async with asking(app) as http:
        assert (await http.get("/session")).status_code == 401


async def test_the_page_itself_is_for_everyone_and_asks_nobody_else(app: FastAPI) -> None:
    await key(app, "admin")
    async with asking(app, peer="10.0.0.7", host="gateway.example") as http:
        for path in ("/", "/web/page.css", "/web/vendor/uPlot.min.css"):
            answer = await http.get(path)
            assert answer.status_code == 200
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "http" not in policy
            assert "unsafe" not in policy
            assert answer.headers["Cache-Control"] == "no-cache"
            head = await http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["Content-Length"] == answer.headers["Content-Length"]
        etag = answer.headers["ETag"]
        assert (await http.get("/web/vendor/uPlot.min.css", headers={"If-None-Match": etag})).status_code == 304
        for path in ("/web/..%2fserver.py", "/web/../server.py", "/web/%2e%2e/keys.py", "/web//etc/passwd"):
            assert (await http.get(path)).status_code in (401, 404)
        assert (await http.post("/")).status_code == 405
