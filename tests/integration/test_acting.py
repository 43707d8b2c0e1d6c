"""What the live page may do in a session, and what no other page can make a browser do, on both databases."""

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

from api.access import COOKIE
from api.acting import TOKEN
from api.conflicts import NOT_SHOWN
from api.operations import operations
from common.settings import ServerSettings
from db import Database
from server import create_app
from storage.webhooks import FOR_EVER
from tests.rig.factories import SERIES, make_report, make_state
from tests.rig.serving import empty_database

HOST = "gateway.example"
OWN = {"Origin": f"https://{HOST}"}

Headers = dict[str, str]


@asynccontextmanager
async def application(database_url: str, tmp_path: Path) -> AsyncIterator[FastAPI]:
    app = create_app(ServerSettings(database_url=database_url, audit_path=tmp_path / "audit.jsonl"))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def app(database_url: str, tmp_path: Path) -> AsyncIterator[FastAPI]:
    """On each database."""
    async with application(database_url, tmp_path) as app:
        yield app


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[FastAPI]:
    """For what no database has a part in."""
    async with application(empty_database(tmp_path), tmp_path) as app:
        yield app


def asking(app: FastAPI, root_path: str = "", **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=("10.0.0.7", 4711), root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url=f"https://{HOST}{root_path}", headers=headers)


async def key(app: FastAPI, scope: str) -> str:
    return str((await app.state.keys.create("test", [scope]))[1])


@asynccontextmanager
async def page(app: FastAPI, scope: str = "admin", root_path: str = "") -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A browser that has logged in, and its page's token."""
    async with asking(app, root_path) as browser:
        bearer = {"Authorization": f"Bearer {await key(app, scope)}"}
        assert (await browser.post("/session", headers=bearer)).status_code == 200
        yield browser, (await browser.get("/session")).json()["Token"]


async def conflicted(database: Database, patient: str = "P2") -> str:
    """An open conflict about a series of two images; its digest."""
    await database.store(make_report("1", "2"))
    await database.store(make_report("2", "3", patient_id=patient))
    (conflict,) = await database.conflicts(after=None, limit=1, resolved=False)
    return conflict.Digest


async def given_up(database: Database) -> int:
    """A webhook that was not told its first change."""
    hook = await operations(database)["add_webhook"](url="http://127.0.0.1:9/hook?token=secret", from_start=True)
    await database.webhooks.bury(hook["id"], 1, "HTTP 500")
    return int(hook["id"])


def audited(tmp_path: Path) -> dict[str, Any]:
    """The last line of the audit log."""
    line: dict[str, Any] = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    return line


# --- each thing that a page does --------------------------------------------------------------------------------


async def test_a_page_settles_a_conflict_and_the_audit_log_says_who_and_how(app: FastAPI, tmp_path: Path) -> None:
    digest = await conflicted(app.state.database)
    async with page(app) as (browser, token):
        settled = await browser.post(
            f"/conflicts/{digest}", json={"Resolution": "correct"}, headers=OWN | {TOKEN: token}
        )
        who = (await browser.get("/session")).json()["Who"]
    assert (settled.status_code, settled.json()["PatientID"], settled.json()["NumInstances"]) == (200, "P2", 3)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    (line,) = [one for one in lines if one["route"] == "/conflicts/{digest}"]
    told = {name: line[name] for name in ("who", "via", "method", "status", "conflict", "decision")}
    assert told == {
        "who": who,
        "via": "page",
        "method": "POST",
        "status": 200,
        "conflict": digest,
        "decision": "correct",
    }
    assert line["series_instance_uid"] == SERIES


async def test_a_page_orders_declares_and_dismisses(app: FastAPI, tmp_path: Path) -> None:
    database: Database = app.state.database
    await database.store(make_report("1"))
    async with page(app) as (browser, token), asking(app) as gateway:
        gateway.headers["Authorization"] = f"Bearer {await key(app, 'series:write')}"
        for id in ("one", "two"):
            assert (await gateway.put(f"/gateways/{id}", json=make_state(id))).status_code == 200
        browser.headers.update(OWN | {TOKEN: token})
        order = {"Kind": "discard", "DeadLetter": 7}
        assert (await browser.post("/gateways/one/orders", json=order)).json()["State"] == "waiting"
        line = audited(tmp_path)
        assert {name: line[name] for name in ("gateway", "kind", "dead_letter", "via")} == {
            "gateway": "one",
            "kind": "discard",
            "dead_letter": 7,
            "via": "page",
        }
        said = {"Declared": "incomplete", "Because": "the last phase is missing"}
        assert (await browser.post(f"/series/{SERIES}/declaration", json=said)).json()["Changed"]
        assert audited(tmp_path)["decision"] == "incomplete"
        assert "phase" not in (tmp_path / "audit.jsonl").read_text()

        still = await browser.delete("/gateways/one")
        assert (still.status_code, "is not gone" in still.json()["detail"]) == (409, True)
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=1), tick=False):
            assert (await browser.delete("/gateways/one")).status_code == 204
            assert audited(tmp_path)["gateway"] == "one"
            assert (await browser.delete("/gateways/one")).status_code == 404
        names = [one["State"]["GatewayID"] for one in (await browser.get("/gateways")).json()["gateways"]]
        assert names == ["two"]
        assert (await gateway.put("/gateways/one", json=make_state("one", Stopped=True))).status_code == 200
        assert len((await browser.get("/gateways")).json()["gateways"]) == 2  # it is back
        assert (await browser.delete("/gateways/one")).status_code == 204  # it has said itself that it is over


async def test_a_page_has_a_webhook_told_again_or_gives_that_up(app: FastAPI, tmp_path: Path) -> None:
    database: Database = app.state.database
    await database.store(make_report("1"))
    await database.last_change()
    hook = await given_up(database)
    path = f"/webhooks/{hook}/untold"
    async with page(app) as (browser, token):
        browser.headers.update(OWN | {TOKEN: token})
        untold = (await browser.get(path)).json()
        assert "secret" not in str(untold)
        assert (untold["Host"], untold["Ended"], untold["Count"]) == ("127.0.0.1", False, 1)
        (change,) = untold["changes"]
        assert (change["Number"], change["Problem"], change["SeriesInstanceUID"]) == (1, "HTTP 500", SERIES)
        assert (await browser.post(path, json={"Do": "replay"})).json()["From"] == 1
        assert (await browser.get(path)).json()["Count"] == 0
        await database.webhooks.bury(hook, 1, "HTTP 500")
        assert (await browser.post(path, json={"Do": "discard"})).json()["Did"] == "1 given up for good"
        line = audited(tmp_path)
        assert (line["webhook"], line["decision"], line["via"]) == (hook, "discard", "page")
        assert (await browser.post(path, json={"Do": "discard"})).status_code == 404
        assert (await browser.get("/webhooks/99/untold")).status_code == 404


async def test_a_webhook_that_wants_no_more_is_said_to_have_ended(database: Database) -> None:
    await given_up(database)
    (claimed,) = await database.webhooks.claim("a process", 9, [])
    await database.webhooks.keep(claimed["Id"], "a process", {"NextAttemptAt": FOR_EVER, "Problem": "HTTP 410"})
    (row,) = await database.webhooks.all()
    assert (row["Ended"], row["Dead"]) == (True, 1)
    assert await database.webhooks.discard(claimed["Id"]) == 1
    (row,) = await database.webhooks.all()
    assert (row["Ended"], row["Dead"]) == (True, 0)


# --- what no other page can do ----------------------------------------------------------------------------------

Forge = Callable[[str], Headers]
FORGED: dict[str, Forge] = {
    "another origin": lambda token: {"Origin": "https://evil.example", TOKEN: token},
    "another port, which is the same site": lambda token: {"Origin": f"https://{HOST}:8443", TOKEN: token},
    "an origin that ends alike": lambda token: {"Origin": f"https://evil.{HOST}", TOKEN: token},
    "an origin that is no URL": lambda token: {"Origin": "https://[", TOKEN: token},
    "a page in a sandbox": lambda token: {"Origin": "null", TOKEN: token},
    "another site, of which the browser says so": lambda token: {"Sec-Fetch-Site": "cross-site", **OWN, TOKEN: token},
    "another host of the site": lambda token: {"Sec-Fetch-Site": "same-site", **OWN, TOKEN: token},
    "no word of where it comes from": lambda token: {TOKEN: token},
    "no token": lambda token: OWN,
    "no token, of the same origin": lambda token: {"Sec-Fetch-Site": "same-origin"},
    "an empty token": lambda token: OWN | {TOKEN: ""},
    "a token that is none": lambda token: OWN | {TOKEN: token[:-1] + ("0" if token[-1] != "0" else "1")},
    "a token that is no ASCII": lambda token: OWN | {TOKEN: "ü"},
}


async def untouched(database: Database) -> bool:
    return len(await database.conflicts(after=None, limit=9, resolved=False)) == 1


async def test_a_forged_request_does_nothing_and_is_told_why(on_sqlite: FastAPI, tmp_path: Path) -> None:
    digest = await conflicted(on_sqlite.state.database)
    async with page(on_sqlite) as (browser, token):
        for kind, forged in FORGED.items():
            sent = [(name.encode(), value.encode()) for name, value in forged(token).items()]
            refused = await browser.post(f"/conflicts/{digest}", json={"Resolution": "merge"}, headers=sent)
            assert (refused.status_code, len(refused.json()["detail"]) > 40) == (403, True), kind
        who = (await browser.get("/session")).json()["Who"]
    assert await untouched(on_sqlite.state.database)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    posts = [(one["who"], one["status"], "via" in one) for one in lines if one["method"] == "POST"][1:]
    assert posts == [(who, 403, False)] * len(FORGED)


async def test_a_token_is_its_sessions_and_ends_with_it(app: FastAPI) -> None:
    digest = await conflicted(app.state.database)
    path, merge = f"/conflicts/{digest}", {"Resolution": "merge"}
    async with page(app) as (browser, token), page(app) as (_, others):
        assert token != others
        assert (await browser.post(path, json=merge, headers=OWN | {TOKEN: others})).status_code == 403
        kept = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
        assert (await browser.delete("/session")).status_code == 204
        after = await browser.post(path, json=merge, headers=OWN | {TOKEN: token})
    async with asking(app, **kept) as thief:  # the cookie was copied before
        replayed = await thief.post(path, json=merge, headers=OWN | {TOKEN: token})
        assert (await thief.get("/series")).status_code == 401
    for refused in (after, replayed):
        assert (refused.status_code, "has ended" in refused.json()["detail"]) == (403, True)
    assert await untouched(app.state.database)


async def test_two_logins_with_one_key_are_two_sessions(app: FastAPI) -> None:
    bearer = {"Authorization": f"Bearer {await key(app, 'admin')}"}
    with time_machine.travel(datetime.now(UTC), tick=False):
        async with asking(app) as one, asking(app) as other:
            answers = [await browser.post("/session", headers=bearer) for browser in (one, other)]
            assert len({answer.json()["Token"] for answer in answers}) == 2
            await one.delete("/session")
            assert [(await browser.get("/series")).status_code for browser in (one, other)] == [401, 200]


async def test_a_readers_session_gets_no_token_and_acts_in_no_way(on_sqlite: FastAPI) -> None:
    digest = await conflicted(on_sqlite.state.database)
    async with page(on_sqlite) as (_, admins), page(on_sqlite, "series:read") as (browser, token):
        assert token is None
        for shown in ({}, {TOKEN: admins}):
            refused = await browser.post(f"/conflicts/{digest}", json={"Resolution": "merge"}, headers=OWN | shown)
            assert (refused.status_code, "scope admin" in refused.json()["detail"]) == (403, True)
    assert await untouched(on_sqlite.state.database)


async def test_a_session_posts_no_reports_and_does_not_prolong_itself(on_sqlite: FastAPI) -> None:
    async with page(on_sqlite) as (browser, token):
        browser.headers.update(OWN | {TOKEN: token})
        assert (await browser.post("/series", json=make_report("1").model_dump(mode="json"))).status_code == 401
        assert (await browser.put("/gateways/g", json=make_state("g"))).status_code == 401
        assert (await browser.post("/session")).status_code == 401


async def test_a_key_in_the_header_acts_as_ever_from_wherever(on_sqlite: FastAPI) -> None:
    digest = await conflicted(on_sqlite.state.database)
    headers = {"Authorization": f"Bearer {await key(on_sqlite, 'admin')}", "Origin": "https://evil.example"}
    async with asking(on_sqlite, **headers, **{"Sec-Fetch-Site": "cross-site"}) as http:
        assert (await http.post(f"/conflicts/{digest}", json={"Resolution": "merge"})).status_code == 200


NOBODYS = f"/conflicts/{'0' * 64}"  # who may settle it is told that it is not there


async def test_while_there_is_no_key_no_other_page_acts_on_this_machine(on_sqlite: FastAPI) -> None:
    own = "http://127.0.0.1:8000"
    asks: list[tuple[Headers, int]] = [
        ({}, 404),  # a command
        ({"Origin": own}, 404),
        ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, 404),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8042"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(on_sqlite), base_url=own) as http:
        for headers, status in asks:
            answer = await http.post(NOBODYS, json={"Resolution": "merge"}, headers=headers)
            assert answer.status_code == status, headers


# --- behind a proxy ---------------------------------------------------------------------------------------------


PROXIED: list[tuple[Headers, int]] = [
    ({"Origin": "https://gateway.example"}, 404),
    ({"Origin": "https://gateway.example:443"}, 404),
    ({"Host": "gateway.example:8443", "Origin": "https://gateway.example:8443"}, 404),
    ({"Host": "127.0.0.1:8000", "X-Forwarded-Host": "gateway.example", "Origin": "https://gateway.example"}, 404),
    ({"Host": "10.0.0.9", "X-Forwarded-Host": "Gateway.example, inner", "Origin": "https://gateway.example"}, 404),
    ({"Host": "127.0.0.1:8000", "Sec-Fetch-Site": "same-origin", "Origin": "https://gateway.example"}, 404),
    ({"Host": "127.0.0.1:8000", "Origin": "https://gateway.example"}, 403),  # http, and Host is not passed on
    ({"Host": "127.0.0.1:8000", "X-Forwarded-Host": "gateway.example", "Origin": "https://evil.example"}, 403),
]


async def test_behind_a_proxy_and_a_root_path_the_origin_is_that_of_the_page(on_sqlite: FastAPI) -> None:
    async with page(on_sqlite, root_path="/gateway") as (browser, token):
        for headers, status in PROXIED:
            cookie = f"{COOKIE}={browser.cookies[COOKIE]}"
            sent = headers | {TOKEN: token, "Cookie": cookie}
            answer = await browser.post(NOBODYS, json={"Resolution": "merge"}, headers=sent)
            assert answer.status_code == status, headers


# --- what is shown before ---------------------------------------------------------------------------------------


def seen(record: dict[str, Any]) -> dict[str, str]:
    """What a person sees of a record, as text."""
    attributes = {keyword: "\\".join(values) for keyword, values in record["Attributes"].items()}
    return attributes | {
        name: str(value) for name, value in record.items() if name not in NOT_SHOWN and value is not None
    }


@pytest.mark.parametrize("decision", ["dismiss", "merge", "correct"])
async def test_what_is_foreseen_of_a_decision_is_what_comes_of_it(app: FastAPI, decision: str) -> None:
    database: Database = app.state.database
    stored = {"StudyDescription": ["Head"], "StudyDate": ["20260101"], "Modality": ["CT"]}
    sent = {"StudyDescription": ["Knee"], "Modality": ["MR"], "BodyPartExamined": ["KNEE"]}
    await database.store(make_report("1", "2").model_copy(update={"Attributes": stored}))
    await database.store(
        make_report("2", "3", patient_id="P2", study="1.9").model_copy(
            update={"Attributes": sent, "PatientName": "Other^Name"}
        )
    )
    async with asking(app, Authorization=f"Bearer {await key(app, 'admin')}") as http:
        (conflict,) = (await http.get("/conflicts", params={"SeriesInstanceUID": SERIES})).json()["conflicts"]
        assert (await http.get("/conflicts", params={"SeriesInstanceUID": "9.9"})).json()["conflicts"] == []
        path = f"/conflicts/{conflict['Digest']}"
        outlook = (await http.get(path)).json()
        assert outlook["Conflict"] == conflict
        after = (await http.post(path, json={"Resolution": decision})).json()
        assert (await http.get(path)).status_code == 404  # it is settled
    told = {one["What"]: (one["Before"], one["After"]) for one in outlook["Would"][decision]}
    was, now = seen(outlook["Record"]), seen(after)
    assert told == {what: (was.get(what), now.get(what)) for what in was | now if was.get(what) != now.get(what)}
    assert bool(told) == (decision != "dismiss")


# --- which gateways are refused ---------------------------------------------------------------------------------


async def test_every_server_process_knows_which_gateways_one_of_them_refuses(app: FastAPI) -> None:
    database: Database = app.state.database
    async with asking(app) as gateway:
        write, read = await key(app, "series:write"), await key(app, "series:read")
        gateway.headers["Authorization"] = f"Bearer {write}"
        await gateway.put("/gateways/g", json=make_state("g"))
        gateway.headers["Authorization"] = f"Bearer {read}"
        for id in ("g", "a-stranger"):
            assert (await gateway.put(f"/gateways/{id}", json=make_state(id))).status_code == 403
        await app.state.refusals.write()
        since = datetime.now(UTC) - timedelta(seconds=30)
        assert await Database(database.engine).heartbeats.refused(since) == {
            "g": "this key lacks the scope series:write"
        }
        frames = app.state.overview.frames()
        assert json.loads(await anext(frames))["Refused"].keys() == {"g"}
        await frames.aclose()
        gateway.headers["Authorization"] = f"Bearer {write}"
        await gateway.put("/gateways/g", json=make_state("g"))  # its key was mended
        assert await database.heartbeats.refused(since) == {}
