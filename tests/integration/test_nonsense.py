"""Whatever is posted: no 5xx, a refusal that names the field, and everything else goes on being served.

So it is with what an earlier version let in and stored.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from api.examples import GATEWAY_REPORT
from common.settings import ServerSettings
from models import MAX_ATTRIBUTE, MAX_DESCRIPTION, MAX_VALUE, MAX_VALUES, MOST
from server import create_app
from storage.connection import Connection
from tests.rig.factories import make_state
from tests.rig.serving import empty_database

SERIES = GATEWAY_REPORT["SeriesInstanceUID"]
READ = (
    *("/series", f"/series/{SERIES}", f"/series/{SERIES}/timeline", f"/series/{SERIES}/instances", "/completions"),
    *("/conflicts", "/conflicts?resolved=true", "/changes", "/gateways", "/overview/series", "/metrics"),
    *(f"/overview/series?search={SERIES}", "/health/ready", "/dicom-web/studies?includefield=all"),
    *("/dicom-web/series?SeriesDescription=*", "/dicom-web/instances"),
)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    url = empty_database(tmp_path)
    app = create_app(ServerSettings(database_url=url, requests_per_s=100_000, max_body_bytes=20_000_000))
    async with app.router.lifespan_context(app):
        yield app


async def everything(http: httpx.AsyncClient, app: FastAPI) -> dict[str, httpx.Response]:
    """What there is to read: all of it is answered, in UTF-8."""
    answers = {path: await http.get(path) for path in READ}
    assert {path: answer.status_code for path, answer in answers.items() if answer.status_code not in (200, 204)} == {}
    for answer in answers.values():
        answer.content.decode()
    frames = app.state.overview.frames()
    frame = json.loads(await anext(frames))
    await frames.aclose()
    assert [one["SeriesInstanceUID"] for one in frame["Stored"]]
    return answers


HUGE = "a number longer than Python reads"


def posted(body: object) -> bytes:
    """JSON of whatever, NaN, lone surrogates and HUGE numbers included."""
    return json.dumps(body).replace(f'"{HUGE}"', "1" + "0" * 5000).encode()


# --- text that is none ------------------------------------------------------------------------------------------

LONE = "a\udfffb"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("SeriesInstanceUID", LONE),
        ("PatientID", LONE),
        ("PatientName", LONE),
        ("StudyInstanceUID", LONE),
        ("SOPInstanceUIDs", ["1", LONE]),
        ("MissingSOPInstanceUIDs", [LONE]),
        ("InstanceAttributes", {"SOPClassUID": [LONE]}),
        ("InstanceAttributes", {LONE: ["1"]}),
        ("Attributes", {"SeriesDescription": [LONE]}),
        ("Attributes", {"SeriesDescription": ["fine", "\ud800"]}),
        ("Attributes", {LONE: ["1"]}),
        ("Undecoded", {"SeriesDescription": LONE}),
        ("Undecoded", {LONE: ""}),
        ("Verdict", LONE),
        ("ExpectedFrom", LONE),
        ("Basis", LONE),
        ("Source", LONE),
        ("IdlePolicy", LONE),
        ("GatewayID", LONE),
        ("FirstReceivedAt", LONE),
        ("Timeline", [{"At": "2026-01-01T00:00:00Z", "Event": "a.b", "Details": {"Text": LONE}}]),
        ("Timeline", [{"At": "2026-01-01T00:00:00Z", "Event": "a.b", "Details": {LONE: 1}}]),
        ("Timeline", [{"At": "2026-01-01T00:00:00Z", "Event": LONE}]),
    ],
)
async def test_text_that_is_no_unicode_is_422_naming_the_field(
    http: httpx.AsyncClient, app: FastAPI, field: str, value: object
) -> None:
    await http.post("/series", json=GATEWAY_REPORT)
    for body in (posted(GATEWAY_REPORT | {field: value}), json.dumps(GATEWAY_REPORT | {field: value}).encode("utf-16")):
        answer = await http.post("/series", content=body, headers=JSON)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"][:2] == ["body", field]
        answer.content.decode()
    await everything(http, app)


async def test_surrogates_as_bytes_and_in_unknown_names_are_refused(http: httpx.AsyncClient, app: FastAPI) -> None:
    await http.post("/series", json=GATEWAY_REPORT)
    as_bytes = posted(GATEWAY_REPORT | {"PatientName": "@"}).replace(b"@", LONE.encode("utf-8", "surrogatepass"))
    for body in (as_bytes, posted(GATEWAY_REPORT | {LONE: 1}), posted({LONE: LONE}), posted(LONE)):
        answer = await http.post("/series", content=body, headers=JSON)
        assert answer.status_code in (400, 422)
        answer.content.decode()
    await everything(http, app)


@pytest.mark.parametrize("field", ["AETitle", "Address", "Reason", "LastProblem", "GatewayID"])
async def test_a_heartbeat_with_text_that_is_no_unicode_is_422_naming_the_field(
    http: httpx.AsyncClient, app: FastAPI, field: str
) -> None:
    await http.post("/series", json=GATEWAY_REPORT)
    state = make_state("one") | {field: LONE}
    answer = await http.put("/gateways/one", content=posted(state), headers=JSON)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", field])
    answer = await http.post(f"/conflicts/{'0' * 64}", content=posted({"Resolution": LONE}), headers=JSON)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "Resolution"])
    await everything(http, app)


@pytest.mark.parametrize("text", ["%ED%BF%BF", "%FF%FE", "%00", "%F5%80%80%80"])
async def test_paths_and_queries_that_are_no_unicode_fail_nothing(http: httpx.AsyncClient, text: str) -> None:
    paths = [f"/series/{text}", f"/conflicts/{text}", f"/dicom-web/studies/{text}/series", f"/gateways/{text}"]
    queries = ["series?PatientID", "series?Modality", "series?after", "overview/series?search", "changes?since"]
    queries += ["dicom-web/studies?PatientName", "dicom-web/series?SeriesDescription", f"dicom-web/series?{text}"]
    for path in (*paths, *(f"/{query}={text}" for query in queries)):
        answer = await http.get(path)
        assert answer.status_code < 500
        answer.content.decode()


# --- more than a record holds -----------------------------------------------------------------------------------

FULL = {f"K{n}": ["x" * (MAX_ATTRIBUTE // 2 - 1)] * 2 for n in range(MAX_DESCRIPTION // MAX_ATTRIBUTE)}


async def test_as_much_as_a_record_holds_is_taken(http: httpx.AsyncClient) -> None:
    undecoded = {f"K{n}": "A" * MAX_ATTRIBUTE for n in range(MAX_DESCRIPTION // MAX_ATTRIBUTE)}
    answer = await http.post("/series", json=GATEWAY_REPORT | {"Attributes": FULL, "Undecoded": undecoded})
    assert answer.status_code == 201
    assert (answer.json()["Attributes"], answer.json()["Undecoded"]) == (FULL, undecoded)
    other = {"Attributes": {"Other": ["x"]}, "Undecoded": {"Other": "AAAA"}, "Revision": 2}
    assert (await http.post("/series", json=GATEWAY_REPORT | other)).json() == answer.json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Attributes", {"SeriesDescription": ["x" * (MAX_VALUE + 1)]}),
        ("Attributes", {"SeriesDescription": ["x" * 15_000_000]}),
        ("Attributes", {"SeriesDescription": [""] * (MAX_VALUES + 1)}),
        ("Attributes", {"SeriesDescription": ["x" * (MAX_ATTRIBUTE // 2)] * 2}),
        ("Attributes", FULL | {"SeriesDescription": ["x"]}),
        ("Attributes", {f"K{n}": [] for n in range(MOST + 1)}),
        ("Undecoded", {"SeriesDescription": "A" * (MAX_ATTRIBUTE + 1)}),
        ("Undecoded", {f"K{n}": "A" * (MAX_DESCRIPTION // 8) for n in range(9)}),
        ("Undecoded", {f"K{n}": "" for n in range(MOST + 1)}),
    ],
)
async def test_more_than_a_record_holds_is_422_naming_the_field(
    http: httpx.AsyncClient, field: str, value: object
) -> None:
    answer = await http.post("/series", json=GATEWAY_REPORT | {field: value})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", field]
    assert len(answer.content) < 1000


async def test_a_long_name_of_a_field_is_not_repeated(http: httpx.AsyncClient) -> None:
    for body in (GATEWAY_REPORT | {"x" * 1_000_000: 1}, GATEWAY_REPORT | {"Attributes": {"x" * 1_000_000: ["1"]}}):
        answer = await http.post("/series", json=body)
        assert answer.status_code == 422
        assert len(answer.content) < 1000


# --- what was stored before -------------------------------------------------------------------------------------


async def execute(app: FastAPI, statement: str, **values: object) -> None:
    async def do(connection: Connection) -> None:
        await connection.execute(text(statement), values)

    await app.state.database.engine.write(do)


async def test_what_was_stored_without_unicode_is_served_with_replacement_characters(
    http: httpx.AsyncClient, app: FastAPI
) -> None:
    await http.post("/series", json=GATEWAY_REPORT)
    await http.post("/series", json=GATEWAY_REPORT | {"PatientID": "another"})
    stored = json.dumps({"SeriesDescription": [LONE], "Modality": ["MR"], "StudyDescription": ["\ud83d", "ü"]})
    await execute(app, 'UPDATE series SET "Attributes" = :stored', stored=stored)
    kept = json.dumps(GATEWAY_REPORT | {"Attributes": json.loads(stored), "Undecoded": {}})
    await execute(app, 'UPDATE conflicts SET "Report" = :kept', kept=kept)
    answers = await everything(http, app)
    shown = answers[f"/series/{SERIES}"].json()["Attributes"]
    assert shown == {"SeriesDescription": ["a\ufffdb"], "Modality": ["MR"], "StudyDescription": ["\ufffd", "ü"]}
    assert answers["/overview/series"].json()["series"][0]["SeriesDescription"] == "a\ufffdb"
    (conflict,) = answers["/conflicts"].json()["conflicts"]
    assert conflict["Report"]["Attributes"] == shown
    for path in ("/dicom-web/studies?includefield=all", "/dicom-web/series?SeriesDescription=*"):
        assert "\ufffd" in json.dumps(answers[path].json(), ensure_ascii=False)
    resolved = await http.post(f"/conflicts/{conflict['Digest']}", json={"Resolution": "correct"})
    assert resolved.json()["Attributes"]["SeriesDescription"] == ["a\ufffdb"]
    later = await http.post("/series", json=GATEWAY_REPORT | {"PatientID": None, "SOPInstanceUIDs": ["1.2.99"]})
    assert later.status_code == 200
    await everything(http, app)


async def test_what_was_stored_beyond_what_a_record_holds_is_served_cut(http: httpx.AsyncClient, app: FastAPI) -> None:
    await http.post("/series", json=GATEWAY_REPORT)
    await http.post("/series", json=GATEWAY_REPORT | {"PatientID": "another"})
    attributes = {"Modality": ["MR"], "SeriesDescription": ["x" * 2_000_000], "StudyID": ["y" * 100] * 20_000}
    attributes |= {f"K{n}": ["z"] for n in range(1000)}
    undecoded = {"Long": "A" * 2_000_000} | {f"K{n}": "AAAA" for n in range(1000)}
    stored = {"attributes": json.dumps(attributes), "undecoded": json.dumps(undecoded)}
    await execute(app, 'UPDATE series SET "Attributes" = :attributes, "Undecoded" = :undecoded', **stored)
    kept = json.dumps(GATEWAY_REPORT | {"Attributes": attributes, "Undecoded": undecoded})
    await execute(app, 'UPDATE conflicts SET "Report" = :kept', kept=kept)
    answers = await everything(http, app)
    for answer in answers.values():
        assert len(answer.content) < 2 * MAX_DESCRIPTION
    shown = answers[f"/series/{SERIES}"].json()
    assert shown["Attributes"]["Modality"] == ["MR"]
    assert shown["Attributes"]["SeriesDescription"] == ["x" * MAX_VALUE]
    assert len(shown["Attributes"]) == len(shown["Undecoded"]) == MOST
    digest = answers["/conflicts"].json()["conflicts"][0]["Digest"]
    assert (await http.post(f"/conflicts/{digest}", json={"Resolution": "correct"})).status_code == 200
    await everything(http, app)


# --- generated --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["", "\0", "\ud800", LONE, "\u202eabc\u2066", "1.2", "x" * 2000, "١.٢", "2026-01-01T00:00:00Z", "\x1b[2J"]
)
NUMBER = st.integers() | st.sampled_from([-1, 2**31, 2**63, 2**64, 10**400, HUGE]) | st.floats()
NONSENSE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DEEP = st.sampled_from([50, 900, 5000, 100_000])


def nested(depth: int, inner: bytes = b"1") -> bytes:
    return b"[" * depth + inner + b"]" * depth


@st.composite
def bodies(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A good body in which a few fields are nonsense, or nonsense at all."""
    whole = {**good, **draw(st.dictionaries(st.sampled_from([*good, "Attributes", "Timeline"]), NONSENSE, max_size=3))}
    if draw(st.booleans()):
        whole |= {"Attributes": draw(st.dictionaries(TEXT | st.just("SeriesDescription"), NONSENSE, max_size=2))}
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([nested(draw(DEEP)), b"", b"\xff", b'{"a": NaN', posted(draw(NONSENSE))]))
    body = posted(whole)
    if draw(st.integers(0, 9)) == 0:
        body = body.replace(b"{", b'{"Attributes": ' + nested(draw(DEEP)) + b", ", 1)
    return body


ADDRESSES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/series", GATEWAY_REPORT),
    ("POST", f"/conflicts/{'0' * 64}", {"Resolution": "merge"}),
    ("PUT", "/gateways/one", make_state("one")),
]


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_generated_nonsense_fails_nothing_and_is_refused_by_name(
    http: httpx.AsyncClient, app: FastAPI, data: st.DataObject
) -> None:
    """On one server: what an example before has left is served, too."""
    await http.post("/series", json=GATEWAY_REPORT)
    for method, path, good in ADDRESSES:
        for body in data.draw(st.lists(bodies(good), min_size=3, max_size=3)):
            answer = await http.request(method, path, content=body, headers=JSON)
            assert answer.status_code in (200, 201, 204, 400, 404, 413, 422)
            if answer.status_code == 422:
                assert all(problem["loc"][0] == "body" for problem in answer.json()["detail"])
            answer.content.decode()
    await everything(http, app)
