"""The live page in a real Chromium: what a person sees, and what the browser asks for."""

import asyncio
import re
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from axe_playwright_python.base import AxeResults
from playwright.async_api import Browser, ConsoleMessage, Error, Locator, Page, Route, async_playwright, expect

from bench.demo import studies
from bench.rig.peers import CHROMIUM, CHROMIUM_ARGUMENTS, free_port, orthanc
from bench.rig.processes import gateway, server
from common.version import version
from tests.rig.commands import answer, server_command
from tests.rig.factories import STUDY, arriving, make_report, make_state
from tests.rig.serving import Serving, serving

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.asyncio(loop_scope="module")]
TIMEOUT_S = 60
TIMEOUT_MS = 1000 * TIMEOUT_S
HOSTILE = "<img src=x onerror=document.title='broken'>^<script>document.title='broken'</script>"


class Watch:
    """What a page's browser complains of, and what it asks for."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.answers: list[tuple[str, int]] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("response", lambda response: self.answers.append((response.url, response.status)))

    def _hear(self, message: ConsoleMessage) -> None:
        changed = "ERR_NETWORK_CHANGED" in message.text  # others begin and end containers meanwhile: it is asked again
        if message.type in ("error", "warning") and not changed:
            self.problems.append(message.text)

    def asks_nobody_but(self, url: str) -> bool:
        return all(one.startswith(url) for one in self.requests)


Browse = Callable[..., AbstractAsyncContextManager[tuple[Page, Watch]]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests of this process: it is what takes long to start."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def browse(browser: Browser) -> Browse:
    """A page in a context of its own: nothing that another test left behind."""

    @asynccontextmanager
    async def open_page(**options: Any) -> AsyncIterator[tuple[Page, Watch]]:
        context = await browser.new_context(**options)
        try:
            context.set_default_timeout(TIMEOUT_MS)
            page = await context.new_page()
            watch = Watch(page)
            try:
                yield page, watch
            except (AssertionError, Error):
                print(f"the page: hidden={await page.evaluate('document.hidden')}, {watch.problems}, {watch.answers}")
                raise
        finally:
            await context.close()

    return open_page


expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def url(running: Serving) -> str:
    return running.url


def tell(url: str, gateway_id: str, **change: Any) -> None:
    state = make_state(gateway_id, **change)
    httpx.put(f"{url}/gateways/{gateway_id}", json=state, timeout=TIMEOUT_S, trust_env=False).raise_for_status()


@contextmanager
def speaking(url: str, **versions: str | None) -> Iterator[None]:
    """Gateways of these versions that are heard again and again: on a busy machine, too, none falls silent."""
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(3):
            tell_all()

    def tell_all() -> None:
        for id, theirs in versions.items():
            tell(url, id, Version=theirs)

    tell_all()
    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def store(url: str, series: str, **change: Any) -> None:
    body = make_report("1", "2", series=series).model_dump(mode="json") | change
    httpx.post(f"{url}/series", json=body, timeout=TIMEOUT_S, trust_env=False).raise_for_status()


def cells(page: Page, table: str, row: str) -> Locator:
    """Of the row that holds this text."""
    return page.locator(f"#{table} tbody tr:has(td)").filter(has_text=row).locator("td")


# --- the whole story --------------------------------------------------------------------------------------------


def three_series() -> dict[str, list[Path]]:
    """The images of three series of several patients, some of each."""
    by_series: dict[str, list[Path]] = defaultdict(list)
    for path in studies():
        by_series[pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID].append(path)
    return dict(sorted(by_series.items(), key=lambda item: len(item[1]))[-4:-1])


@pytest.mark.slow
@pytest.mark.peer("orthanc")
async def test_a_real_send_is_seen_to_arrive_and_to_be_judged_without_reload(browse: Browse, tmp_path: Path) -> None:
    dicom_port, series = free_port(), three_series()
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path, url, pacs=f"ORTHANC@127.0.0.1:{dicom_port}", id="gateway-1") as (_, port),
        orthanc(tmp_path, port, dicom_port=dicom_port) as pacs,
    ):
        images = {uid: [pacs.upload_image(path.read_bytes()) for path in paths] for uid, paths in series.items()}
        async with browse() as (page, watch):
            await page.goto(url)
            await expect(page.get_by_role("heading", name="gateway-1")).to_be_visible()
            await expect(page.locator("#headline")).to_have_text("All well: 1 gateway is receiving")
            await page.evaluate("window.loadedOnce = true")
            for n in (1, 2):  # one by one, and each is seen
                for some in images.values():
                    await asyncio.to_thread(pacs.send, [some[n - 1]])
                for uid, some in images.items():
                    await expect(cells(page, "arriving", uid).nth(2)).to_have_text(f"{n} of {len(some)}")
            for some in images.values():
                await asyncio.to_thread(pacs.send, some[2:])
            for uid, some in images.items():
                await expect(cells(page, "stored-table", uid).nth(2)).to_have_text(f"{len(some)} of {len(some)}")
                await expect(cells(page, "stored-table", uid).nth(3)).to_contain_text("verified")
            await expect(page.locator("#nothing-arriving")).to_be_visible()  # they do not stay for ever

            await open_timeline_and_search(page, *images)
            assert await page.evaluate("window.loadedOnce")
            assert watch.problems == []
            assert watch.asks_nobody_but(url)


async def open_timeline_and_search(page: Page, *uids: str) -> None:
    await cells(page, "stored-table", uids[0]).get_by_role("link").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator("svg .curve")).to_be_visible()
    assert await dialog.locator(".picture > svg .mark.pacs-answered").count() >= 2
    assert await dialog.locator(".picture > svg .mark.series-reported").count() == 1
    assert await dialog.locator(".picture > svg .mark.report-stored").count() == 1
    for words in ("ORTHANC was asked", "Reported as verified", "Row stored"):
        await expect(dialog.get_by_role("listitem").filter(has_text=words).last).to_be_visible()
    assert page.url.endswith(f"#series/{uids[0]}")
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(page).not_to_have_url(re.compile("#series"))

    study = page.locator("#stored-table tbody").filter(has_text=uids[0])
    family = (await study.locator(".patient").inner_text()).split(",", maxsplit=1)[0]
    await page.get_by_role("searchbox").fill(family.upper())
    await expect(page.locator("#search-result")).to_have_text(re.compile("found"))
    assert {family in text for text in await page.locator("#stored-table .study").all_inner_texts()} == {True}
    await page.get_by_role("searchbox").fill("nobody")
    await expect(page.locator("#nothing-stored")).to_have_text("No match")
    await page.get_by_role("searchbox").fill("")
    await expect(page.locator("#stored-table .series")).to_have_count(3)


# --- who may look -----------------------------------------------------------------------------------------------


async def test_a_wrong_key_sees_nothing_and_a_good_one_until_it_logs_out(browse: Browse, running: Serving) -> None:
    url = running.url
    store(url, f"{STUDY}.1", PatientName="Secret^Name")
    tell(url, "secret-gateway")
    key, writes = running.new_key("series:read"), running.new_key("series:write")
    async with browse() as (page, watch):
        await page.goto(f"{url}/#series/{STUDY}.1")
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        for wrong, says in (
            ("wrong", "not valid"),
            ("schlüssel", "not valid"),
            (writes, "lacks the scope series:read"),
        ):
            await page.get_by_label("API key").fill(wrong)
            await page.get_by_role("button", name="Log in").click()
            await expect(page.get_by_role("alert")).to_contain_text(says)
        shown = {address for address, status in watch.answers if status < 400}
        assert {address.removeprefix(url).split("/")[1] for address in shown} <= {"", "web"}
        assert "ecret" not in await page.content()
        await expect(page.locator("#page")).to_be_hidden()

        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("Secret, Name")  # what the address asked for
        await page.get_by_role("button", name="Close").click()
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(page).to_have_url(f"{url}/")
        await expect(page.get_by_role("heading", name="secret-gateway")).to_be_visible()
        assert await page.evaluate("document.cookie") == ""
        (cookie,) = await page.context.cookies()
        assert key.split("_", 2)[2] not in cookie["value"]
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        await page.reload()
        await expect(page.get_by_role("heading", name="secret-gateway")).to_be_visible()

        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        assert await page.context.cookies() == []
        assert "ecret" not in await page.content()
        assert all("401" in problem or "403" in problem for problem in watch.problems)
        assert watch.asks_nobody_but(url)


@pytest.mark.slow
async def test_a_key_that_is_revoked_leads_back_to_the_login(browse: Browse, tmp_path: Path) -> None:
    with server(tmp_path) as (process, url):
        database = f"sqlite+aiosqlite:///{tmp_path}/series.db"
        key = answer(database, "keys", "create", "page", "--scope", "series:read")["key"]
        async with browse() as (page, _):
            await page.goto(url)
            await page.get_by_label("API key").fill(key)
            await page.keyboard.press("Enter")
            await expect(page.locator("#link")).to_have_text("live")
            assert server_command(database, "keys", "revoke", key.split("_")[1]).returncode == 0
            process.stop()  # a stream that is open goes on until its end; the next one is refused
            with server(tmp_path, int(url.rpartition(":")[2])):
                await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


async def log_in(page: Page, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.keyboard.press("Enter")
    await expect(page.locator("#link")).to_have_text("live")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["web/world.js", "web/page.js", "web/vendor/uPlot.iife.min.js", "session"])
async def test_a_page_that_loads_as_the_network_changes_starts_all_the_same(
    browse: Browse, running: Serving, lost: str
) -> None:
    async with browse() as (page, _):
        await page.route(f"**/{lost}", lambda route: route.abort("internetdisconnected"), times=2)
        await page.goto(running.url)
        await expect(page.locator("#link")).to_have_text("live")
        await expect(page.locator("#starting")).to_be_hidden()


@pytest.mark.slow
async def test_a_page_that_does_not_start_says_so(browse: Browse, running: Serving) -> None:
    async with browse() as (page, _):
        await page.route("**/web/start.js", lambda route: route.abort("internetdisconnected"))
        await page.goto(running.url)
        await expect(page.get_by_text("The page is loading. If nothing follows, load it again.")).to_be_visible()


@pytest.mark.slow
async def test_a_request_that_is_never_answered_is_sent_again(browse: Browse, running: Serving) -> None:
    async with browse() as (page, _):
        asked: list[Route] = []

        async def answer(route: Route) -> None:
            asked.append(route)
            if len(asked) > 2:
                await route.continue_()

        await page.route("**/session", answer)
        await page.goto(running.url)
        await expect(page.locator("#link")).to_have_text("live")
        for route in asked[:2]:
            await route.abort()


@pytest.mark.slow
async def test_who_logs_out_does_so_in_every_tab_or_is_told_that_it_failed(browse: Browse, running: Serving) -> None:
    url, key = running.url, running.new_key("series:read")
    async with browse() as (page, _):
        await page.goto(url)
        await log_in(page, key)
        other = await page.context.new_page()
        await other.goto(url)
        await expect(other.locator("#link")).to_have_text("live")
        await page.route("**/session", lambda route: route.fulfill(status=503))
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("alert")).to_have_text("not logged out: the server does not answer")
        await expect(page.locator("#page")).to_be_visible()
        await page.unroute("**/session")
        await page.get_by_role("button", name="Log out").click()
        for tab in (page, other):
            await expect(tab.get_by_role("heading", name="Log in")).to_be_visible()
            await expect(tab.locator("#page")).to_be_hidden()


# --- what is shown ----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_broken_connection_is_said_and_mended_without_reload(browse: Browse, tmp_path: Path) -> None:
    with server(tmp_path) as (process, url):
        store(url, f"{STUDY}.1")
        async with browse() as (page, _):
            await page.goto(url)
            await expect(page.locator("#stored-table .series")).to_have_count(1)
            await page.evaluate("window.loadedOnce = true")
            process.stop()
            await expect(page.locator("#link")).to_contain_text("Connection lost, retrying")
            with server(tmp_path, int(url.rpartition(":")[2])):
                store(url, f"{STUDY}.2")
                await expect(page.locator("#link")).to_have_text("live")
                await expect(page.locator("#stored-table .series")).to_have_count(2)
                store(url, f"{STUDY}.3")
                await expect(page.locator("#stored-table .series")).to_have_count(3)
            assert await page.evaluate("window.loadedOnce")


async def test_what_senders_write_is_text_wherever_it_stands(browse: Browse, url: str) -> None:
    hostile = HOSTILE.replace("^", " ")[:60]
    store(
        url,
        f"{STUDY}.1",
        PatientName=HOSTILE,
        PatientID=HOSTILE,
        Source=hostile,
        Basis=hostile,
        Attributes={"Modality": ["<b>"], "SeriesDescription": [HOSTILE], "StudyDescription": [HOSTILE]},
        GatewayID=hostile,
        LastReceivedAt=datetime.now(UTC).isoformat(),
        Timeline=[
            {
                "At": datetime.now(UTC).isoformat(),
                "Event": "pacs.answered",
                "Details": {"PACS": "<b>", "Problem": HOSTILE},
            },
            {"At": datetime.now(UTC).isoformat(), "Event": "what.ever", "Details": {"What": HOSTILE}},
        ],
    )
    dead = {"SeriesInstanceUID": "1.2", "Instances": 1, "Answer": HOSTILE, "At": datetime.now(UTC).isoformat()}
    series = arriving("1.3", 1, Source=hostile)
    tell(url, "<i>g", AETitle=HOSTILE, Reason=HOSTILE, DeadLetters=1, Dead=[dead], Arriving=[series], OpenSeries=1)
    async with browse() as (page, watch):
        await page.goto(url)
        link = cells(page, "stored-table", STUDY).get_by_role("link")
        await expect(link).to_contain_text(HOSTILE)
        study = page.locator("#stored-table .study")
        await expect(study).to_contain_text("<img src=x onerror=document.title='broken'>, <script>")
        await expect(page.locator("#sources-table")).to_contain_text(hostile)
        await expect(page.locator("#arriving")).to_contain_text(hostile)
        await expect(page.locator("#problems")).to_contain_text(HOSTILE)
        await link.click()
        await expect(page.get_by_role("dialog").locator(".picture > svg .mark")).not_to_have_count(0)
        assert await page.locator("main img, dialog img, main script, dialog script, main b, main i").count() == 0
        assert "broken" not in await page.title()
        assert watch.problems == []
        assert not [one for one in watch.requests if one.endswith("/x")]


GROWING = [0.0, *(20 * 4.0**n for n in range(16))]  # each gap is three times all before: none is cut
FAR_APART = " ".join(["0:1", *(f"{20 * 4**n}:{n + 2}" for n in range(15))])


@pytest.mark.slow
@pytest.mark.parametrize(
    "timeline",
    [
        [(s, "pacs.answered", {"PACS": "P", "Count": 1, "Known": 1}) for s in GROWING],
        [(n * n * 86400.0, "series.reported", {"Verdict": "idle", "Images": 1}) for n in range(150)],
        [(0.0, "images.arrived", {"Arrivals": FAR_APART})],
        [(0.0, "images.arrived", {"Arrivals": f"0:1 {'9' * 200}:2"}), (1.0, "series.idle", {"Phase": 1})],
        [(0.0, "images.arrived", {"Arrivals": 7}), (1.0, "series.idle", {"Phase": "constructor"})],
        [(0.0, "association.joined", {}), (0.0, "images.counted", {"Images": "x"}), (9.0, "images.arrived", {})],
        [(0.0, "images.arrived", {"Arrivals": "0:-1 1:0"}), (1.0, "series.reopened", {"LateByS": "x"})],
    ],
)
async def test_any_timeline_is_drawn(
    browse: Browse, url: str, timeline: list[tuple[float, str, dict[str, Any]]]
) -> None:
    began = datetime(1, 2, 1, tzinfo=UTC)
    events = [
        {"At": (began + timedelta(seconds=s)).isoformat(), "Event": event, "Details": details}
        for s, event, details in timeline
    ]
    store(url, f"{STUDY}.1", GatewayID="g", Timeline=events, LastReceivedAt=None, FirstReceivedAt=None)
    async with browse() as (page, watch):
        await page.goto(f"{url}/#series/{STUDY}.1")
        dialog = page.get_by_role("dialog")
        await expect(dialog.locator(".facts")).to_contain_text("Test, One")
        await expect(dialog.locator(".events")).to_contain_text("Row stored")
        await expect(dialog.locator(".picture > svg")).to_be_visible()
        assert await dialog.locator(".tick").count() <= 300
        assert "function" not in await dialog.inner_text()
        right = "(all) => all.map((one) => one.transform.baseVal[0].matrix.e)"
        assert all(0 <= x < 5000 for x in await dialog.locator(".picture > svg .mark").evaluate_all(right))
        assert watch.problems == []


@pytest.mark.slow
async def test_what_cannot_be_told_of_a_series_leaves_its_facts(browse: Browse, url: str) -> None:
    store(url, f"{STUDY}.1", PatientName="Doe^Jane")
    strange: dict[str, Any] = {
        "events": [{"At": "never", "Event": "series.idle", "GatewayID": None, "Revision": 1, "Details": {}}]
    }
    async with browse() as (page, watch):
        await page.route("**/timeline", lambda route: route.fulfill(json=strange))
        await page.goto(f"{url}/#series/{STUDY}.1")
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Not all of it can be shown")
        await expect(dialog.locator(".facts")).to_contain_text("Doe, Jane")
        assert watch.problems == []


@pytest.mark.slow
async def test_the_dialog_labels_every_value_and_links_to_study_json_and_viewer(browse: Browse, tmp_path: Path) -> None:
    viewer = "https://viewer.example/?StudyInstanceUIDs={StudyInstanceUID}"
    uid, attributes = f"{STUDY}.1", {"StudyDate": ["20260103"], "AccessionNumber": ["A17"]}
    with serving(tmp_path, viewer_url=viewer) as running:
        store(running.url, uid, Source="CT1 CT", CalledAETitle="US", Attributes=attributes, Doubtful=["odd"])
        async with browse(locale="en-GB") as (page, watch):
            await page.goto(f"{running.url}/#series/{uid}")
            facts = page.get_by_role("dialog").locator(".facts > div")
            await expect(facts.first).to_be_visible()
            said = dict([(await one.inner_text()).split("\n", 1) for one in await facts.all()])
            expected = {"PatientID": "P1", "Study date": "3 Jan 2026", "Accession no.": "A17", "Sender": "CT1 CT"}
            expected |= {"Called AE": "US", "Doubtful": "odd"}
            assert {name: said[name] for name in expected} == expected
            assert {"First image", "Last image", "Stored"} <= said.keys()
            for name, href in (
                ("Series of this study", f"series?StudyInstanceUID={STUDY}"),
                ("JSON", f"series/{uid}"),
                ("Viewer", f"https://viewer.example/?StudyInstanceUIDs={STUDY}"),
            ):
                await expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("href", href)
            assert watch.problems == []
            assert watch.asks_nobody_but(running.url)


async def test_a_pause_veils_no_words_of_the_timeline(browse: Browse, url: str) -> None:
    now = datetime.now(UTC)
    events = [
        {"At": (now - timedelta(seconds=s)).isoformat(), "Event": event, "Details": details}
        for s, event, details in (
            (601, "images.arrived", {"Arrivals": "0:1 1:2"}),
            (1, "series.reported", {"Verdict": "idle", "Images": 2}),
        )
    ]
    store(url, f"{STUDY}.1", GatewayID="g", Timeline=events)
    async with browse() as (page, _):
        await page.goto(f"{url}/#series/{STUDY}.1")
        parts = page.locator(".picture > svg > .cut, .picture > svg > .value")
        await expect(parts).not_to_have_count(0)
        classes = await parts.evaluate_all("(all) => all.map((one) => one.getAttribute('class'))")
        assert (classes[0], classes[-1]) == ("cut", "value")


async def test_the_timeline_is_drawn_anew_where_the_window_is_resized(browse: Browse, url: str) -> None:
    store(url, f"{STUDY}.1")
    async with browse(viewport={"width": 1280, "height": 900}) as (page, watch):
        await page.goto(f"{url}/#series/{STUDY}.1")
        picture = page.locator(".picture > svg")
        before = int(await picture.get_attribute("width") or 0)
        await page.set_viewport_size({"width": 700, "height": 900})
        await expect(picture).not_to_have_attribute("width", str(before))
        assert int(await picture.get_attribute("width") or 0) < 700
        assert watch.problems == []


@pytest.mark.slow
async def test_open_series_go_with_their_gateway(browse: Browse, url: str) -> None:
    tell(url, "g", Arriving=[arriving("1.3", 1)], OpenSeries=1)
    async with browse() as (page, _):
        await page.goto(url)
        await expect(page.locator("#arriving")).to_contain_text("1.3")
        tell(url, "g", Arriving=[arriving("1.3", 2)], OpenSeries=1, Stopped=True)
        await expect(page.locator("#stopped-gateways")).to_contain_text("g")
        await expect(page.locator("#nothing-arriving")).to_be_visible()
        await page.reload()
        await expect(page.locator("#stopped-gateways")).to_contain_text("g")
        await expect(page.locator("#nothing-arriving")).to_be_visible()


SEEN = "2026-01-01T12:00:00Z"


def told(uid: str, revision: int, last: str, updated: str) -> dict[str, Any]:
    """A stored series of a frame."""
    return {
        "SeriesInstanceUID": uid,
        "StudyInstanceUID": uid.rpartition(".")[0],
        "Revision": revision,
        "NumInstances": revision,
        "LastReceivedAt": f"2026-01-01T{last}Z",
        "UpdatedAt": f"2026-01-01T{updated}Z",
        "Verdict": "idle",
    }


async def test_what_arrives_is_counted_and_named_the_newest_first_until_it_is_decided(browse: Browse, url: str) -> None:
    now = datetime.now(UTC)

    def began(uid: str, ago_s: float, patient: str, **change: Any) -> dict[str, Any]:
        times = {"FirstReceivedAt": (now - timedelta(seconds=ago_s)).isoformat()}
        of = {"StudyInstanceUID": STUDY, "PatientID": patient, "PatientName": f"Name^{patient}"}
        return arriving(uid, 1, SeriesDescription="Thorax 5.0", **of, **times, **change)

    both = [began("1.3", 30, "P1"), began("1.3", 20, "P2")]  # one UID under two patients
    tell(url, "g", Arriving=[*both, began("1.4", 1, "P3")], OpenSeries=3)
    async with browse() as (page, watch):
        await page.goto(url)
        rows = page.locator("#arriving tbody tr")
        await expect(rows).to_have_count(3)
        await expect(page.locator("#arriving-count")).to_have_text("3")
        for n, patient in enumerate(("P3", "P2", "P1")):
            await expect(rows.nth(n).locator("td").nth(0)).to_contain_text(f"Name, {patient}")
            await expect(rows.nth(n).locator("td").nth(1)).to_contain_text("Thorax 5.0")
        tell(url, "g", Arriving=[both[1] | {"Instances": 7}, began("1.5", 0, "P4")], OpenSeries=2)
        await expect(rows).to_have_count(2)
        await expect(page.locator("#arriving-count")).to_have_text("2")
        await expect(rows.nth(0)).to_contain_text("P4")
        await expect(rows.nth(1).locator("td").nth(2)).to_have_text("7")
        assert watch.problems == []


@pytest.mark.slow
async def test_figures_count_by_the_servers_clock_and_only_what_brought_images(browse: Browse, url: str) -> None:
    late = {"At": "2026-01-01T12:00:30Z", "Stopped": False, "StartedAt": "2026-01-01T11:00:00Z", "Address": "a"}
    state = [late | {"Received": [n], "Instances": n} for n in (10, 30)]
    news = [{"SeenAt": SEEN, "State": one, "Arriving": [], "Gone": []} for one in state]
    rows = [
        [told("1", 1, "11:00:00", "11:00:02"), told("9", 7, "09:00:00", "11:00:01")],  # newest first
        [told("1", 2, "11:00:00", "11:59:00")],  # a conflict was settled
        [told("1", 3, "11:59:00", "11:59:03")],
    ]
    frames = [
        {"At": SEEN, "Full": not n, "Gateways": {"g": news[min(n, 1)]}, "Silent": {}, "Totals": {}, "Stored": rows[n]}
        for n in range(3)
    ]
    async with browse() as (page, _):
        await page.goto(url)
        images, latencies = await page.evaluate(
            """async (frames) => {
                const { World } = await import("/web/world.js");
                const world = new World();
                for (const frame of frames) world.take(frame);
                return [world.throughput()[1].at(-1) * 5, world.latencies.map(({ s }) => s)];
            }""",
            frames,
        )
    assert (images, latencies) == (30, [2, 3])


@pytest.mark.slow
async def test_the_table_loses_nothing_however_much_comes_at_once(browse: Browse, url: str) -> None:
    for n in range(60):
        store(url, f"{STUDY}.{n}")
    many = [{**told(f"9.{n}", 1, "11:00:00", "11:00:02"), "Number": 1000 + n} for n in range(130, 60, -1)]
    rows = 'document.querySelectorAll("#stored-table .series a")'
    async with browse() as (page, _):
        await page.goto(url)
        await page.get_by_role("button", name="Show older").click()
        await expect(page.locator("#stored-table .series")).to_have_count(60)
        uids = await page.evaluate(
            f"""async (Stored) => {{
                const stored = await import("/web/stored.js");
                stored.show(null, {{ Stored }});
                return [...{rows}].map((link) => link.hash.slice(8)).filter(Boolean);
            }}""",
            many,
        )
        assert uids == [one["SeriesInstanceUID"] for one in many] + [f"{STUDY}.{n}" for n in range(59, 29, -1)]
        await page.get_by_role("button", name="Show older").click()
        await expect(page.locator("#stored-table .series")).to_have_count(130)


@pytest.mark.slow
async def test_the_table_is_asked_for_again_where_there_was_no_answer(browse: Browse, url: str) -> None:
    store(url, f"{STUDY}.1")
    async with browse() as (page, _):
        await page.route("**/overview/series*", lambda route: route.fulfill(status=503), times=1)
        await page.goto(url)
        await expect(page.locator("#search-result")).to_have_text("The server does not answer; try again.")
        await expect(page.locator("#stored-table .series")).to_have_count(1)
        await expect(page.locator("#search-result")).to_have_text("")


@pytest.mark.slow
async def test_what_is_looked_for_stands_in_the_address_and_back_leads_back(browse: Browse, url: str) -> None:
    for n, name in enumerate(("Doe^Jane", "Roe^Max", "Doe^John", "Doe^Jane")):
        attributes = {"StudyDate": ["20260103"], "StudyDescription": ["CT Thorax"], "AccessionNumber": [f"A{n}"]}
        of = {"StudyInstanceUID": f"{STUDY}.{n % 3}", "PatientName": name, "Attributes": attributes}
        store(url, f"{STUDY}.{n % 3}.{n}", Verdict=("idle", "capped")[n % 2], **of)
    series, study = ("#stored-table .series", "#stored-table .study")
    permissions = ["clipboard-read", "clipboard-write"]
    async with browse(locale="en-GB", permissions=permissions) as (page, watch):
        await page.goto(f"{url}/?Verdict=odd&day=2026-02-31&sort=x&Modality=%00&Doubtful=1&search={'x' * 300}&more=1")
        await expect(page.locator(series)).to_have_count(4)
        await expect(page.locator(study)).to_have_count(3)
        assert "2 series" in await page.locator(study).first.inner_text()
        for words in ("Doe, Jane", "P1", "3 Jan 2026", "CT Thorax", "Acc. A3"):
            await expect(page.locator(study).first).to_contain_text(words)

        await page.locator("summary").click()
        await page.get_by_role("combobox", name="Verdict").select_option("idle")
        await expect(page.locator(series)).to_have_count(2)
        await expect(page).to_have_url(f"{url}/?Verdict=idle")
        await expect(page.locator(study).last).to_contain_text("1 of 2 series")
        await page.get_by_role("searchbox").fill("thorax jane")
        await expect(page.locator(series)).to_have_count(1)
        await expect(page).to_have_url(f"{url}/?search=thorax+jane&Verdict=idle")
        await page.reload()
        await expect(page.locator(series)).to_have_count(1)
        await expect(page.get_by_role("combobox", name="Verdict")).to_have_value("idle")
        store(url, f"{STUDY}.9")  # what was looked for stays as it is
        await expect(page.get_by_role("button", name="1 stored since: look again")).to_be_visible()
        await page.go_back()
        await expect(page.get_by_role("searchbox")).to_have_value("")
        await expect(page.locator(series)).to_have_count(3)
        await page.go_back()
        await expect(page.locator(series)).to_have_count(5)
        await expect(page.get_by_role("combobox", name="Verdict")).to_have_value("")

        await page.get_by_role("button", name="Patient", exact=True).click()
        await expect(page).to_have_url(f"{url}/?sort=Patient&ascending=true")
        await expect(page.locator(".patient")).to_have_text(["Doe, Jane", "Doe, John", "Roe, Max", "Test, One"])
        await page.get_by_role("button", name=f"Copy Series Instance UID {STUDY}.1.1").click()
        await expect(page.locator(".copy.done")).to_have_count(1)
        assert await page.evaluate("navigator.clipboard.readText()") == f"{STUDY}.1.1"
        assert watch.problems == []


@pytest.mark.slow
async def test_what_was_looked_for_is_gone_from_the_address_after_the_logout(browse: Browse, running: Serving) -> None:
    url, key = running.url, running.new_key("series:read")
    async with browse() as (page, _):
        await page.goto(f"{url}/?search=doe")
        await log_in(page, key)
        await expect(page.locator("#nothing-stored")).to_have_text("No match")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        await expect(page).to_have_url(f"{url}/")
        await expect(page.locator("#search")).to_have_value("")


def source(name: str, silent_s: float, **change: Any) -> dict[str, Any]:
    """As GET /sources has it."""
    last = datetime.now(UTC) - timedelta(seconds=silent_s)
    days = [{"Day": str(last.date()), "Images": 1200, "Series": 3}]
    learnt = [{"GatewayID": "gateway-1", "LearntFrom": 17, "WaitS": {"open": 8.1, "released": 2.0}}]
    times = {"FirstReceivedAt": last.isoformat(), "LastReceivedAt": last.isoformat(), "SilentForS": silent_s}
    known = {"MissedHours": 0, "Unusual": False, "Days": days, "Verdicts": [], "Learnt": learnt}
    return {"Source": name, **times, **known, **change}


async def test_sources_are_told_and_trouble_is_seen_in_title_and_icon(browse: Browse, url: str) -> None:
    fared = [{"Verdict": "idle", "Series": 40, "Contradicted": 2}]
    sources = [source("CT1 CT", 5, Verdicts=fared), source("MR2 MR", 7200, Unusual=True, MissedHours=3)]
    async with browse() as (page, watch):
        await page.route("**/sources?*", lambda route: route.fulfill(json={"sources": sources, "next": None}))
        with speaking(url, g=version()):
            await page.goto(url)
            rows = page.locator("#sources-table tbody tr")
            await expect(rows).to_have_count(2)
            await expect(rows.nth(0)).to_contain_text("MR2 MR")
            await expect(rows.nth(0)).to_contain_text("3 usual hours missed")
            for words in ("just now", "2 of 40 verdicts too early", "2.0 s to 8.1 s", "gateway-1, from 17 series"):
                await expect(rows.nth(1)).to_contain_text(words)
            await expect(rows.nth(1).get_by_role("img", name="Images on 1 day of five weeks")).to_be_visible()
            await expect(page).to_have_title("Warning: Source MR2 MR is unusually silent · Series gateway")
            await expect(page.locator("#icon")).to_have_attribute("href", "web/icon-warn.svg")
        tell(url, "g", Reason="the disk is full")
        await expect(page).to_have_title("Problem: Gateway g accepts no images · Series gateway")
        await expect(page.locator("#icon")).to_have_attribute("href", "web/icon-bad.svg")
        assert watch.problems == []
        assert watch.asks_nobody_but(url)


HIDDEN = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.mark.slow
async def test_a_tab_that_is_not_seen_holds_no_connection(browse: Browse, url: str) -> None:
    for n in range(60):
        store(url, f"{STUDY}.{n}")
    async with browse() as (page, watch):
        await page.goto(url)
        await page.get_by_role("button", name="Show older").click()
        await expect(page.locator("#stored-table .series")).to_have_count(60)
        await page.evaluate(HIDDEN, True)
        await watchers(url, 0)
        store(url, f"{STUDY}.60")
        tell(url, "began-meanwhile")
        await page.evaluate(HIDDEN, False)
        await expect(page.get_by_role("heading", name="began-meanwhile")).to_be_visible()
        await expect(page.locator("#stored-table .series")).to_have_count(61)  # older ones stay
        await watchers(url, 1)
        assert watch.problems == []


async def watchers(url: str, expected: int) -> None:
    """Until so many streams are open."""
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(trust_env=False) as http:
        while f"server_watchers {expected}.0" not in (await http.get(f"{url}/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_what_is_wrong_is_said_in_words_with_the_cure(browse: Browse, url: str) -> None:
    now = datetime.now(UTC)
    dead = {"SeriesInstanceUID": "1.2", "Instances": 3, "Answer": "422 StudyInstanceUID", "At": now.isoformat()}
    long_ago = (now - timedelta(minutes=10)).isoformat()
    tell(url, "gone", Stopped=True)
    async with browse() as (page, _):
        await page.goto(url)
        tell(url, "silent")
        await expect(page.locator("#headline")).to_have_text("All well: 1 gateway is receiving")
        await expect(page.locator("#stopped-gateways")).to_contain_text("gone")
        await expect(page.locator("#headline")).to_have_text(
            "Problem: Gateway silent is silent", timeout=2 * TIMEOUT_MS
        )
        tell(
            url,
            "ill",
            Reason="the disk is full",
            DeadLetters=2,
            Dead=[dead],
            UndeliveredReports=3,
            OldestUndeliveredS=90,
            LastProblem="HTTP 401",
            Arriving=[arriving("1.7", 1, FirstReceivedAt=long_ago, LastReceivedAt=long_ago)],
            OpenSeries=1,
        )
        await expect(page.locator("#headline")).to_have_text("5 problems")
        wrong = page.get_by_role("list", name="Problems")
        for words in (
            "Gateway silent is silent: for",
            "Gateway ill accepts no images: the disk is full",
            "2 reports of gateway ill were refused for good: latest answer: 422",
            "python client.py dead-letters list",
            "Reports of gateway ill wait for the server: 3, the oldest for 2 min; last problem: HTTP 401",
            "1 series is stuck at gateway ill",
        ):
            await expect(wrong).to_contain_text(words)
        card = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="silent"))
        await expect(card).to_contain_text("Silent for")


@pytest.mark.slow
async def test_the_pages_about_the_api_are_ours_alone(browse: Browse, url: str) -> None:
    async with browse() as (page, watch):
        await page.goto(f"{url}/docs")
        await expect(page.get_by_role("heading", name="Series gateway")).to_be_visible()
        await expect(page.locator(".opblock-summary-path").filter(has_text="/series").first).to_be_visible()
        assert watch.asks_nobody_but(url)
        assert watch.problems == []


@pytest.mark.slow
async def test_a_gateway_of_another_version_is_named(browse: Browse, url: str) -> None:
    ours = version()
    async with browse() as (page, watch):
        with speaking(url, same=ours, old="0.1.0", older=None):
            await page.goto(url)
            await expect(page.get_by_role("contentinfo")).to_have_text(f"Series gateway {ours}")
            await expect(page.locator("#headline")).to_have_text("All well: 3 gateways are receiving")
            for id, words in (
                ("same", f"version {ours}"),
                ("old", f"version 0.1.0, older than this server's {ours}"),
                ("older", f"version before 0.2, older than this server's {ours}"),
            ):
                card = page.locator(".gateway").filter(has=page.get_by_role("heading", name=id, exact=True))
                await expect(card.get_by_text("version")).to_have_text(words)
            with speaking(url, new="99.0"):
                await expect(page.locator("#headline")).to_have_text("Warning: Gateway new is newer than this server")
        assert watch.problems == []


@pytest.mark.slow
async def test_a_gateway_that_was_killed_and_started_again_does_not_stay_red(browse: Browse, url: str) -> None:
    began = datetime.now(UTC)
    tell(url, "host-0123456789ab", At=began.isoformat(), StartedAt=(began - timedelta(hours=1)).isoformat())
    async with browse() as (page, _):
        await page.goto(url)
        await expect(page.locator("#headline")).to_contain_text("silent", timeout=2 * TIMEOUT_MS)
        again = began + timedelta(seconds=1)
        tell(url, "host-ba9876543210", StartedAt=again.isoformat())
        await expect(page.locator("#headline")).to_have_text("All well: 1 gateway is receiving")
        await expect(page.locator("#stopped-gateways")).to_contain_text("host-0123456789ab")


LABELS = """() => {
    window.labels = [];
    const write = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, x, ...more) {
        const wide = this.measureText(text).width;
        const { e, a } = this.getTransform();
        const [left, right] = { center: [0.5, 0.5], right: [1, 0], end: [1, 0] }[this.textAlign] ?? [0, 1];
        const at = a * x + e;
        window.labels.push({
            chart: this.canvas.closest(".chart").id, text, canvas: this.canvas.width,
            left: at - left * wide, right: at + right * wide,
        });
        return write.call(this, text, x, ...more);
    };
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
async def test_every_tick_of_a_chart_says_where_it_stands_and_none_is_cut(browse: Browse, url: str, width: int) -> None:
    now = datetime.now(UTC)
    for n, late_s in enumerate((0.5, 30, 4000)):
        store(url, f"{STUDY}.{n}", LastReceivedAt=(now - timedelta(seconds=late_s)).isoformat())
    tell(url, "g")
    async with browse(viewport={"width": width, "height": 900}) as (page, watch):
        await page.add_init_script(f"({LABELS})()")
        await page.goto(url)
        await expect(page.get_by_role("img", name=re.compile("half within"))).to_be_visible()
        drawn = "new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(() => then(labels))))"
        labels = await page.evaluate(drawn)
        said = {one["text"] for one in labels if one["chart"] == "latency"}
        assert {"1 s", "10 s", "1 min", "10 min", "1 h"} <= said
        assert "0" not in said
        rates = {one["text"] for one in labels if one["chart"] == "throughput"}
        assert ({"0.5"} if width < 480 else {"0.25", "0.5", "0.75"}) <= rates
        assert [one for one in labels if one["left"] < 0 or one["right"] > one["canvas"]] == []
        times = {one["text"] for one in labels if ":" in one["text"]}
        assert len(times) >= (3 if width < 480 else 8)
        assert watch.problems == []


@pytest.mark.slow
async def test_a_gateway_whose_key_is_refused_is_not_called_silent(browse: Browse, running: Serving) -> None:
    url = running.url
    tell(url, "gateway-1")
    key, reads = running.new_key("series:read"), running.new_key("series:read", "metrics:read")
    async with browse() as (page, _), httpx.AsyncClient(trust_env=False) as http:
        await page.goto(url)
        await log_in(page, key)
        for id, sent in (("gateway-1", reads), ("a-stranger", reads)):
            answer = await http.put(
                f"{url}/gateways/{id}", json=make_state(id), headers={"Authorization": f"Bearer {sent}"}
            )
            assert answer.status_code == 403
        await expect(page.locator("#headline")).to_have_text("Problem: This server refuses gateway gateway-1")
        wrong = page.get_by_role("list", name="Problems")
        await expect(wrong).to_contain_text("this key lacks the scope series:write")
        await expect(wrong).to_contain_text("python server.py keys create gateway-1 --scope series:write")
        await expect(page.locator(".gateway .state")).to_contain_text("Refused by this server")
        await expect(page.locator("body")).not_to_contain_text("a-stranger")


async def test_a_gateway_of_another_name_and_the_same_journal_is_the_same(browse: Browse, url: str) -> None:
    frame = {"At": SEEN, "Full": True, "Silent": {"a": 99, "b": 60, "c": 1, "d": 99}, "Totals": {}, "Stored": []}
    began = {"a": "10", "b": "11", "c": "12", "d": "10"}
    frame["Gateways"] = {
        id: {
            "SeenAt": SEEN,
            "State": make_state(
                id,
                Journal="other" if id == "d" else "same",
                Address=f"0.0.0.0:{id}",
                StartedAt=f"2026-01-01T{hour}:00:00Z",
                At=f"2026-01-01T{hour}:30:00Z",
            ),
            "Arriving": [],
            "Gone": [],
        }
        for id, hour in began.items()
    }
    async with browse() as (page, _):
        await page.goto(url)
        present = await page.evaluate(
            """async (frame) => {
                const { World } = await import("/web/world.js");
                const world = new World();
                world.take(frame);
                return world.present().map(({ id, silent }) => [id, silent]);
            }""",
            frame,
        )
    assert present == [["c", False], ["d", True]]


@pytest.mark.parametrize("width", [pytest.param(390, marks=pytest.mark.slow), 1280])
async def test_what_is_wrong_comes_first_then_what_arrives_and_what_is_stored(
    browse: Browse, url: str, width: int
) -> None:
    for n in range(3):
        store(url, f"{STUDY}.{n}")
    series = [arriving(f"1.{n}", 1) for n in range(40)]
    tell(url, "g", Arriving=series, OpenSeries=40, Reason="the disk is full", DeadLetters=1)
    async with browse(viewport={"width": width, "height": 844}, has_touch=width < 480) as (page, _):
        await page.goto(url)
        await expect(page.locator("#arriving tbody tr")).to_have_count(40)
        await expect(page.locator("#problems li")).to_have_count(2)
        parts = ("#problems", "#arriving-title", "#stored-title", "#figures", "#throughput", "#latency")
        tops = [await page.locator(one).evaluate("(part) => part.getBoundingClientRect().top") for one in parts]
        assert tops == sorted(tops)
        first = await page.locator("#stored-table .series").first.bounding_box()
        assert first is not None
        assert first["y"] + first["height"] < 1.5 * 844
        verdict = page.locator("#stored-table .series").first.locator("td").nth(3)
        await expect(verdict.get_by_text("quiet, not proven complete")).to_be_visible()  # with no pointer over it
        await expect(page.locator("#who")).to_have_text("no login set up")


# --- for everyone -----------------------------------------------------------------------------------------------


async def fill(url: str) -> None:
    for n in range(60):
        sent = {"Source": "CT1 CT", "LastReceivedAt": datetime.now(UTC).isoformat()}
        name = f"Long^Name{'x' * 50}"
        store(url, f"{STUDY}.{n}", PatientName=name, ExpectedInstances=3, ExpectedFrom="tags", **sent)
    tell(url, "g" * 64, Arriving=[arriving("1." + "7" * 62, 5, Expected=9)], Reason="the disk " + "is full " * 20)


@pytest.mark.slow
async def test_the_keyboard_alone_opens_a_series_and_comes_back(browse: Browse, url: str) -> None:
    await fill(url)
    async with browse() as (page, _):
        await page.goto(url)
        await expect(page.locator("#stored-table .series")).to_have_count(50)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the stored series")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("searchbox", name="Search stored series")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator("summary")).to_be_focused()
        sorts = ("Patient", "Study", "Modality", "Verdict", "From", "Stored")
        for name in sorts:
            await page.keyboard.press("Tab")
            await expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="show all")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name=f"Copy Study Instance UID {STUDY}", exact=True)).to_be_focused()
        await page.keyboard.press("Tab")
        link = page.locator("#stored-table .series a").first
        await expect(link).to_be_focused()
        assert await link.evaluate("(a) => getComputedStyle(a).outlineStyle") == "solid"
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Close")).to_be_focused()
        await expect(page.get_by_role("dialog", name=re.compile("Long, Name"))).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(link).to_be_focused()
        third = page.locator("#stored-table .series a").nth(2)
        await third.focus()
        uid = (await third.get_attribute("href") or "").removeprefix("#series/")
        store(url, uid, SOPInstanceUIDs=[f"{uid}.3"])  # it moves to the top, and is where it was for the keyboard
        await expect(link).to_have_attribute("href", f"#series/{uid}")
        await expect(link).to_be_focused()
        older = page.get_by_role("button", name="Show older")
        await older.press("Enter")
        await expect(page.locator("#stored-table .series")).to_have_count(60)
        await expect(older).to_be_hidden()


@pytest.mark.slow
async def test_a_screen_reader_finds_names_for_everything(browse: Browse, url: str) -> None:
    await fill(url)
    async with browse() as (page, _):
        await page.goto(url)
        await expect(page.locator("#stored-table .series")).to_have_count(50)
        for name in ("Stored series by study, the last changed first", "Series that are receiving images"):
            await expect(page.get_by_role("table", name=name)).to_be_visible()
        for name in ("Patient", "Series", "Images", "Verdict"):
            await expect(page.get_by_role("columnheader", name=name).last).to_be_visible()
        await expect(page.get_by_role("img", name="Bar chart of the last ten minutes")).to_be_visible()
        await expect(page.get_by_role("img", name="One dot a series")).to_be_visible()
        assert await page.locator("html").get_attribute("lang") == "en"
        assert await page.locator("#headline").get_attribute("role") == "status"
        tell(url, "g" * 64, Reason="the disk is full")
        await expect(page.locator("#headline")).not_to_contain_text("silent")
        await page.evaluate(
            "new MutationObserver((all) => (window.said = (window.said ?? 0) + all.length))"
            ".observe(document.querySelector('#headline'), {childList: true, characterData: true, subtree: true})"
        )
        for n in range(3):  # what changes every second is not read out
            tell(url, "g" * 64, Instances=100 * n + 1, Reason="the disk is full", OldestUndeliveredS=n)
            await expect(page.locator(".gateway")).to_contain_text(str(100 * n + 1))
        assert await page.evaluate("window.said") is None


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, *(pytest.param(width, marks=pytest.mark.slow) for width in (375, 768, 1280))])
async def test_nothing_is_wider_than_the_screen(browse: Browse, url: str, width: int) -> None:
    await fill(url)
    async with browse(viewport={"width": width, "height": 800}) as (page, watch):
        await page.goto(url)
        await expect(page.locator("#stored-table .series")).to_have_count(50)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.locator("#stored-table .series a").first.click()
        await expect(page.get_by_role("dialog").get_by_role("listitem").first).to_be_visible()
        assert await page.get_by_role("dialog").evaluate("(d) => d.scrollWidth <= d.clientWidth")
        assert watch.problems == []


@pytest.mark.slow
async def test_axe_finds_no_violation_in_light_dark_and_on_a_phone(browse: Browse, url: str) -> None:
    await fill(url)
    store(url, f"{STUDY}.0", PatientID="another")
    ways: list[dict[str, Any]] = [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    ]
    for options in ways:
        async with browse(**options, reduced_motion="reduce") as (page, _):
            await page.goto(f"{url}/?Verdict=idle")
            await expect(page.locator("#sources-table tbody tr")).to_have_count(1)
            await expect(page.locator("#stored-table .series")).to_have_count(50)
            assert violations(await Axe().run(page)) == []
            await page.locator("#stored-table .series a").first.click()
            await expect(page.get_by_role("dialog").locator(".events li").first).to_be_visible()
            assert violations(await Axe().run(page)) == []


def violations(found: AxeResults) -> list[str]:
    """Rules that are broken, and where."""
    return [f"{one['id']}: {node['html']}" for one in found.response["violations"] for node in one["nodes"]]


@pytest.mark.slow
async def test_it_is_dark_where_the_system_is(browse: Browse, url: str) -> None:
    async with browse(color_scheme="dark", reduced_motion="reduce") as (page, _):
        await page.goto(url)
        await expect(page.locator("#link")).to_have_text("live")
        colours = "(b) => [getComputedStyle(b).backgroundColor, getComputedStyle(b).color]"
        back, text = [re.findall(r"\d+", one) for one in await page.locator("body").evaluate(colours)]
        assert max(map(int, back)) < 60
        assert min(map(int, text)) > 200
        moves = "(e) => getComputedStyle(e, '::before').animationName"
        assert await page.locator("#link").evaluate(moves) == "none"
