"""What HTTP leaves to servers, the same on every route: HEAD, slashes, bytes that are no text, other origins."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from api.examples import MINIMAL_REPORT
from common.settings import ServerSettings, SettingsError, load
from server import create_app
from tests.rig.serving import empty_database, serving

PAGE = "https://viewer.example"
NO_TEXT = (b"\xff", b'{"Resolution": "\xff"}', b'{"PatientName": "\xed\xa0\x80"}', '"ü"'.encode("latin-1"))


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    settings = ServerSettings(database_url=empty_database(tmp_path), allowed_origins=f"{PAGE}, http://a:1")
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.post("/series", json=MINIMAL_REPORT)).status_code == 201
        yield client


def routes(app: FastAPI, method: str) -> Iterator[tuple[str, set[str]]]:
    """The paths that answer a method, of something that is stored where there is such a thing, and their statuses."""
    known = {"SeriesInstanceUID": MINIMAL_REPORT["SeriesInstanceUID"], "series": MINIMAL_REPORT["SeriesInstanceUID"]}
    known |= dict.fromkeys(("StudyInstanceUID", "study"), MINIMAL_REPORT["StudyInstanceUID"])
    known |= {"digest": "0" * 64, "GatewayID": "gateway-1", "Id": "1"}
    for template, methods in app.openapi()["paths"].items():
        if method in methods:
            path = re.sub(r"\{(\w+)\}", lambda name: str(known[name[1]]), template)
            yield path, set(methods[method]["responses"])


def readable(app: FastAPI) -> list[str]:
    return [*(path for path, _ in routes(app, "get")), "/", "/docs", "/openapi.json", "/web/page.js"]


async def test_head_is_get_without_the_body_and_ends_a_stream(app: FastAPI, http: httpx.AsyncClient) -> None:
    for path in readable(app):
        head = await http.head(path)
        there = not re.search("dicom|conflicts/|webhooks/", path)
        assert (head.status_code, head.content) == (200 if there else head.status_code, b""), path
        if not path.endswith("/stream"):
            get = await http.get(path)
            assert head.status_code == get.status_code, path
            assert head.headers.get("Content-Type") == get.headers.get("Content-Type"), path
    assert (await http.head("/nowhere")).status_code == 404


async def test_the_server_sees_a_head_as_it_sends(app: FastAPI) -> None:
    """uvicorn looks at the request's method then: behind a HEAD, bytes of a body would be taken for the next answer."""
    seen: list[str] = []

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        async def look(message: Message) -> None:
            seen.append(scope["method"])
            await send(message)

        await app(scope, receive, look)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(looking), base_url="http://127.0.0.1") as http:
        for path in readable(app):
            await http.head(path)
    assert set(seen) == {"HEAD"}


async def test_a_newline_behind_a_path_is_no_other_name_of_it(app: FastAPI) -> None:
    _, key = await app.state.keys.create("reader", ["series:read"])
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s", headers=headers) as http:
        for path in readable(app):
            assert (await http.get(f"{path}%0A")).status_code in (400, 404), path


@pytest.mark.parametrize("announced", [True, False])
async def test_the_body_of_a_get_ends_no_answer_in_its_middle(
    app: FastAPI, http: httpx.AsyncClient, announced: bool
) -> None:
    async def large() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(2**20)

    for path in readable(app):
        if not path.endswith("/stream"):
            content = b"".join([chunk async for chunk in large()]) if announced else large()
            answer = await http.request("GET", path, content=content)
            assert answer.status_code == (await http.get(path)).status_code, path


async def test_a_slash_at_the_end_redirects_nobody(app: FastAPI, http: httpx.AsyncClient) -> None:
    for path in readable(app):
        if not path.endswith("/stream"):
            assert (await http.get(f"{path.rstrip('/')}/")).status_code == (await http.get(path)).status_code, path
    assert (await http.post("/series/", json=MINIMAL_REPORT)).status_code == 200
    assert (await http.post("/series///", json=MINIMAL_REPORT)).status_code == 200
    assert (await http.get("/dicom-web/studies/?PatientID=nobody")).status_code == 204
    assert (await http.get("//")).status_code == 200


async def test_scopes_are_those_of_the_path_without_its_slash(app: FastAPI) -> None:
    _, key = await app.state.keys.create("gateway", ["series:write"])
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s", headers=headers) as http:
        assert (await http.post("/series/", json=MINIMAL_REPORT)).status_code == 201
        assert (await http.get("/series/")).status_code == 403
        assert (await http.head("/series")).status_code == 403
        assert (await http.head("/metrics/")).status_code == 403


@pytest.mark.parametrize("query", ["PatientID=%FF", "%ff", "PatientID=%ED%A0%80", "a=%C3", "PatientID=M%FCller"])
async def test_a_query_that_is_no_text_is_400(app: FastAPI, http: httpx.AsyncClient, query: str) -> None:
    for path in readable(app):
        answer = await http.get(f"{path}?{query}")
        assert (answer.status_code, "UTF-8" in answer.json()["detail"]) == (400, True), path
        assert answer.headers["Cache-Control"]
    assert (await http.post(f"/series?{query}", json=MINIMAL_REPORT)).status_code == 400


@pytest.mark.parametrize("body", NO_TEXT)
async def test_a_body_that_is_no_text_gets_a_documented_answer(
    app: FastAPI, http: httpx.AsyncClient, body: bytes
) -> None:
    bodies = [(method, *route) for method in ("post", "put") for route in routes(app, method) if route[0] != "/session"]
    assert len(bodies) == 8
    for method, path, documented in bodies:
        for kind in ("application/json", "application/json; charset=latin-1"):
            answer = await http.request(method, path, content=body, headers={"Content-Type": kind})
            assert answer.status_code in (400, 422), path
            assert str(answer.status_code) in documented, path
            assert "\ufffd" not in answer.text


# --- pages of other origins -------------------------------------------------------------------------------------

PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization,x-requested-with",
}


async def test_a_page_of_an_allowed_origin_may_read_with_a_key(app: FastAPI) -> None:
    _, key = await app.state.keys.create("viewer", ["series:read"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as http:
        asked = await http.options("/dicom-web/studies", headers=PREFLIGHT)  # a browser sends no key with it
        assert asked.status_code == 200
        assert asked.headers["Access-Control-Allow-Origin"] == PAGE
        assert {"GET", "HEAD"} == set(asked.headers["Access-Control-Allow-Methods"].split(", "))
        assert "authorization" in asked.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in asked.headers  # no cookie opens anything to another origin
        for headers, status in (({"Authorization": f"Bearer {key}"}, 204), ({"Authorization": "Bearer x"}, 401)):
            answer = await http.get("/dicom-web/studies?orderby=x", headers={"Origin": PAGE} | headers)
            assert answer.status_code == status
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE  # else its script sees no status at all
            assert "Warning" in answer.headers["Access-Control-Expose-Headers"]
            assert "Origin" in answer.headers["Vary"]


async def test_a_page_of_another_origin_may_not(app: FastAPI, http: httpx.AsyncClient) -> None:
    for origin in ("https://evil.example", "null", f"{PAGE}:8443", PAGE.replace("https", "http"), f"{PAGE}.evil"):
        asked = await http.options("/series", headers=PREFLIGHT | {"Origin": origin})
        assert asked.status_code == 400
        answer = await http.get("/series", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in {*asked.headers, *answer.headers}
    asked = await http.options("/series", headers=PREFLIGHT | {"Access-Control-Request-Method": "POST"})
    assert asked.status_code == 400  # pages of other origins only read


async def test_without_the_setting_no_other_origin_may(tmp_path: Path) -> None:
    app = create_app(ServerSettings(database_url=empty_database(tmp_path)))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http,
    ):
        assert (await http.options("/series", headers=PREFLIGHT)).status_code == 405
        answer = await http.get("/series", headers={"Origin": PAGE})
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origins", ["*", "viewer.example", f"{PAGE}/", f"{PAGE}/path", f"{PAGE},", "ftp://a", "null"])
def test_what_is_no_origin_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origins: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVER_ALLOWED_ORIGINS", origins)
    with pytest.raises(SettingsError, match=r"SERVER_ALLOWED_ORIGINS.*https://viewer\.example"):
        load(ServerSettings)


@pytest.mark.parametrize(
    "url",
    [
        "viewer.example/{StudyInstanceUID}",
        "javascript:alert(1)//{StudyInstanceUID}",
        "https://v.example/",
        "https://v/{Study}",
    ],
)
def test_a_viewer_that_cannot_be_linked_to_stops_the_start_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SERVER_VIEWER_URL", url)
    with pytest.raises(SettingsError, match=r"SERVER_VIEWER_URL.*such as https://viewer\.example"):
        load(ServerSettings)


# --- UIDs that are none of PS3.5 §9.1, in paths -------------------------------------------------------------------

ODD_UIDS = ["1.2/3", "a b", "100%", "%2F", "1.2?x=1&y", "a#b", "1.2/", "1.2//", "/1.2", "//", "a;b,c", "~'\"<>"]


def test_odd_uids_are_found_by_a_client_that_quotes_them(tmp_path: Path) -> None:
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        key = {"Authorization": f"Bearer {server.new_key('series:write', 'series:read', 'admin')}"}
        for uid in ODD_UIDS:
            report = MINIMAL_REPORT | {
                "SeriesInstanceUID": uid,
                "StudyInstanceUID": uid,
                "SOPInstanceUIDs": [f"{uid}1"],
            }
            assert client.post("/series", json=report, headers=key).status_code == 201, uid
        for uid in ODD_UIDS:
            quoted = quote(uid, safe="")
            assert client.get(f"/series/{quoted}", headers=key).json()["SeriesInstanceUID"] == uid
            assert client.get(f"/series/{quoted}/", headers=key).json()["SeriesInstanceUID"] == uid
            assert client.get(f"/series/{quoted}/timeline", headers=key).json()["events"], uid
            instances = client.get(f"/series/{quoted}/instances", headers=key).json()
            assert instances["SOPInstanceUIDs"] == [f"{uid}1"]
            for path in (
                f"/dicom-web/studies/{quoted}/series",
                f"/dicom-web/studies/{quoted}/series/{quoted}/instances",
                f"/dicom-web/series?SeriesInstanceUID={quoted}",
            ):
                (found,) = client.get(path, headers=key).json()
                assert found["0020000E"]["Value"] == [uid], path
            other = MINIMAL_REPORT | {"SeriesInstanceUID": uid, "StudyInstanceUID": "9.9", "NumInstances": 1}
            assert client.post("/series", json=other, headers=key).json()["Conflicts"] == 1
        conflicts = client.get("/conflicts", headers=key).json()["conflicts"]
        assert sorted(conflict["SeriesInstanceUID"] for conflict in conflicts) == sorted(ODD_UIDS)
        for conflict in conflicts:
            answer = client.post(f"/conflicts/{conflict['Digest']}", json={"Resolution": "dismiss"}, headers=key)
            assert answer.json()["SeriesInstanceUID"] == conflict["SeriesInstanceUID"]


@pytest.mark.parametrize("uid", [".", "..", "1.2/instances"])
def test_a_uid_that_no_path_can_say_is_found_by_a_query(tmp_path: Path, uid: str) -> None:
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        key = {"Authorization": f"Bearer {server.new_key('series:write', 'series:read')}"}
        report = MINIMAL_REPORT | {"SeriesInstanceUID": uid}
        assert client.post("/series", json=report, headers=key).status_code == 201
        (found,) = client.get("/dicom-web/series", params={"SeriesInstanceUID": uid}, headers=key).json()
        assert found["0020000E"]["Value"] == [uid]
