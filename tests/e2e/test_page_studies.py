"""Studies on the live page, in a real Chromium: their own verdicts, and what they lack, as they change."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, async_playwright, expect

from bench.rig.peers import CHROMIUM, CHROMIUM_ARGUMENTS
from tests.rig.factories import STUDY, make_report
from tests.rig.serving import Serving, serving

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.slow]
TIMEOUT_MS = 60_000


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path) as found:
        yield found


@asynccontextmanager
async def looking(url: str, **options: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page, and what its browser complains of."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = await browser.new_page(**options)
        expect.set_options(timeout=TIMEOUT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda told: problems.append(told.text) if told.type in ("error", "warning") else None)
        await page.goto(url)
        yield page, problems
        await browser.close()


def post(url: str, path: str, **body: Any) -> None:
    httpx.post(f"{url}/{path}", json=body, timeout=60, trust_env=False).raise_for_status()


def store(url: str, series: str, **change: Any) -> None:
    """Two images of a series that is not over."""
    post(url, "series", **make_report("1", "2", series=series).model_dump(mode="json") | {"Verdict": None} | change)


async def test_a_studys_own_verdict_and_what_it_lacks_change_while_it_is_watched(running: Serving) -> None:
    url = running.url
    store(url, "9.1", StudyInstanceUID="9", PatientName="Other^One")
    store(url, f"{STUDY}.1")
    async with looking(url) as (page, problems):
        head = page.locator("#stored-table .study", has_text="Test, One")
        state, verdict = head.locator(".state-of-study"), head.locator(".state-of-study .badge").first
        await expect(state).to_have_text("study open2 images")
        await expect(verdict).to_have_attribute("title", "1 of 1 series are still open, or were drained")
        store(url, f"{STUDY}.2")
        await expect(state).to_have_text("study open4 images")
        at = datetime.now(UTC).isoformat()
        post(url, f"studies/{STUDY}/counts", Series=3, Instances=90, At=at, GatewayID="g")
        await expect(state).to_have_text("study open4 of 90 images1 series missing")
        post(url, f"studies/{STUDY}/declaration", Declared="complete", Because="<b>over</b>")
        await expect(verdict).to_have_text("study declared")
        await expect(verdict).to_have_attribute("title", "declared complete by this machine: <b>over</b>")
        store(url, f"{STUDY}.3")
        await expect(state).to_have_text("study open6 of 90 imageswas too early")
        await expect(head).to_contain_text("3 series")
        other = page.locator("#stored-table .study", has_text="Other, One").locator(".state-of-study")
        await expect(other).to_have_text("study open2 images")
        assert problems == []


def told(event: str, **details: Any) -> dict[str, Any]:
    return {"At": datetime.now(UTC).isoformat(), "Event": event, "Details": details}


async def test_gaps_a_persons_word_and_what_the_pacs_has_of_a_study_are_told(running: Serving) -> None:
    url, series = running.url, f"{STUDY}.1"
    numbers = [str(n) for n in (*range(1, 9), *range(11, 21))]
    said = {"PACS": "ORTHANC", "Count": 18, "Known": 18, "Missing": 0, "Fetched": 0, "Problem": None}
    of_study = {"StudySeries": 3, "StudyInstances": 90}
    events = [told("pacs.answered", **said, **of_study), told("series.parted", Images=18)]
    numbered = {"SOPInstanceUIDs": numbers, "InstanceAttributes": {"InstanceNumber": numbers}}
    store(url, series, **numbered, NumInstances=18, Verdict="idle", Timeline=events)
    async with looking(url) as (page, problems):
        state = page.locator("#stored-table .study", has_text="Test, One").locator(".state-of-study")
        await expect(state).to_have_text("study idle18 images9 to 10 missing?")
        post(url, f"studies/{STUDY}/declaration", Declared="incomplete", Because="the ward has called")
        await expect(state).to_have_text("study declared incomplete18 images9 to 10 missing?")
        await page.goto(f"{url}/#series/{series}")
        await expect(page.locator("#series .events")).to_contain_text("of the study 3 series with 90 images")
        await expect(page.locator("#series .events")).to_contain_text(
            "Reported as a part, 18 images: the PACS has more"
        )
        await expect(page.locator("#series .events")).to_contain_text("Its study is declared incomplete")
        assert problems == []


async def test_what_is_found_shows_its_studies_verdicts_on_a_phone_too(running: Serving) -> None:
    store(running.url, f"{STUDY}.1")
    post(running.url, f"studies/{STUDY}/declaration", Declared="complete", Because="over")
    async with looking(f"{running.url}/?search={STUDY}", viewport={"width": 375, "height": 800}) as (page, problems):
        await expect(page.locator(".state-of-study .badge")).to_have_text("study declared")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert problems == []
