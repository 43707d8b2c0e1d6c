"""What an admin does on the live page in a real Chromium: with the keyboard alone, once each, and not as a reader."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, Request, Route, async_playwright, expect
from sqlalchemy import update

from api.operations import operations
from bench.rig.peers import CHROMIUM, CHROMIUM_ARGUMENTS
from storage.schema import gateways
from tests.rig.factories import SERIES, arriving, make_report, make_state
from tests.rig.serving import Serving, serving

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.slow]
TIMEOUT_MS = 60_000
TABS = 40  # at most, from the top of the page to what is looked for


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path) as found:
        yield found


@asynccontextmanager
async def logged_in(running: Serving, scope: str) -> AsyncIterator[Page]:
    key = running.new_key(scope)  # before the page: while there is none, it asks for none
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = await browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        await page.goto(running.url)
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#link")).to_have_text("live")
        yield page
        await browser.close()


def prepare(running: Serving) -> None:
    """A conflict, a dead letter, an open series, a webhook that was not told a change, a gateway that is gone."""
    database = running.database
    running.done(database.store(make_report("1", "2")))
    running.done(database.store(make_report("2", "3", patient_id="P2")))
    running.done(database.last_change())
    running.done(operations(database)["add_webhook"](url="http://127.0.0.1:9/hook", from_start=False))
    running.done(database.webhooks.bury(1, 1, "HTTP 500"))
    tell(running, "gone")
    silent = datetime.now(UTC) - timedelta(minutes=2)
    running.done(database.engine.write(lambda connection: connection.execute(update(gateways).values(At=silent))))
    dead = {"Id": 7, "SeriesInstanceUID": "1.2", "Instances": 3, "Answer": "422", "At": silent.isoformat()}
    tell(running, "here", DeadLetters=1, Dead=[dead], Arriving=[arriving("1.9", 1)], OpenSeries=1)


def tell(running: Serving, gateway_id: str, **change: Any) -> dict[str, Any]:
    """A heartbeat; the answer to it."""
    headers = {"Authorization": f"Bearer {running.new_key('series:write')}"}
    state = make_state(gateway_id, **change)
    answer = httpx.put(f"{running.url}/gateways/{gateway_id}", json=state, headers=headers, trust_env=False)
    told: dict[str, Any] = answer.raise_for_status().json()
    return told


async def tab_to(page: Page, words: str) -> None:
    """Press Tab until what is so called has the focus, and is seen to have it."""
    focused = "document.activeElement"
    for _ in range(TABS):
        await page.keyboard.press("Tab")
        if words in await page.evaluate(f"({focused}.innerText || {focused}.closest('label')?.innerText) ?? ''"):
            break
    assert words in await page.evaluate(f"{focused}.innerText || {focused}.closest('label').innerText")
    assert await page.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"


async def test_the_keyboard_alone_settles_a_conflict(running: Serving) -> None:
    running.done(running.database.store(make_report("1", "2")))
    running.done(running.database.store(make_report("2", "3", patient_id="P2")))
    async with logged_in(running, "admin") as page:
        await expect(page.locator("#problems .act")).to_have_count(1)
        await tab_to(page, "Settle …")
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Settle a conflict")
        for patient in ("P1", "P2"):  # side by side
            await expect(dialog.get_by_role("row", name=re.compile("PatientID"))).to_contain_text(patient)
        await expect(dialog.get_by_role("button", name="Close")).to_be_focused()
        await tab_to(page, "Dismiss the report")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        for change in ("PatientID: P1 → P2", "Images: 2 → 3"):  # and nothing has changed yet
            await expect(dialog.get_by_role("listitem").filter(has_text=change)).to_be_visible()
        assert running.done(running.database.get(SERIES)).PatientID == "P1"
        await tab_to(page, "Correct patient and study")
        await page.keyboard.press("Enter")
        await expect(dialog.get_by_role("status").filter(has_text="Settled (correct)")).to_be_visible()
        await expect(dialog.get_by_role("button", name="Close")).to_be_focused()
        record = running.done(running.database.get(SERIES))
        assert (record.PatientID, record.NumInstances, record.Conflicts) == ("P2", 3, 0)
        await expect(page.locator("#problems .act")).to_have_count(0)
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_hidden()
        await expect(page.locator("#headline")).to_be_focused()  # the button went with the conflict
        await page.locator("#stored-table .series a").first.press("Enter")
        declare = page.get_by_role("button", name="Declare complete or incomplete …")
        await declare.press("Enter")
        running.done(running.database.store(make_report("4", patient_id="P2")))
        images = page.locator("#series .facts > div").filter(has_text="Images").locator("dd")
        await expect(images).to_have_text("4")  # drawn anew below
        await page.keyboard.press("Escape")
        await expect(declare).to_be_focused()  # where it came from


async def test_an_admin_acts_once_and_is_told_what_came_of_it_where_it_was_pressed(running: Serving) -> None:
    prepare(running)
    posts: list[str] = []
    async with logged_in(running, "admin") as page:
        page.on("request", lambda request: posts.append(request.method) if request.method != "GET" else None)
        wrong = page.get_by_role("list", name="Problems")
        action = page.locator("#action")

        await wrong.get_by_role("button", name="Replay or discard …").click()
        await action.get_by_role("button", name="Discard").click()
        sure = action.locator(".sure")
        await expect(sure).to_contain_text("3 images will never be reported")
        await page.route("**/orders", refuse_post)
        await sure.get_by_role("button", name="Discard").click()
        await expect(sure.get_by_role("alert")).to_have_text("1000 orders wait")
        await page.unroute("**/orders")
        posts.clear()
        await sure.get_by_role("button", name="Discard").dblclick()
        await expect(action.locator(".order")).to_have_text("waits for the gateway's next heartbeat")
        assert posts == ["POST"]
        (order,) = tell(running, "here")["Orders"]
        assert (order["Kind"], order["DeadLetter"]) == ("discard", 7)
        tell(running, "here", OrdersDone=[{"Number": order["Number"]}])
        await expect(action.locator(".order")).to_have_text("discarded")
        await page.keyboard.press("Escape")

        await wrong.get_by_role("button", name="Send again or discard …").click()
        await expect(action).to_contain_text("Change 1, given up")
        await action.get_by_role("button", name="Send again").click()
        await expect(action.get_by_role("status")).to_contain_text("told again from change 1 on")
        await action.get_by_role("button", name="Close").click()

        await wrong.get_by_role("button", name="Dismiss …").click()
        await action.get_by_role("button", name="Dismiss gone").click()
        await expect(action.get_by_role("status")).to_contain_text("gone is dismissed")
        await action.get_by_role("button", name="Close").click()
        await expect(page.get_by_role("heading", name="gone")).to_have_count(0)

        await page.locator("#stored-table .series a").first.click()
        await page.get_by_role("button", name="Declare complete or incomplete …").click()
        press = action.get_by_role("button", name="Declare", exact=True)
        await press.click()
        await expect(action.get_by_role("alert")).to_contain_text("say first")
        await action.get_by_label("It is not complete").check()
        await action.get_by_label("Reason").fill("the last phase is missing")
        await press.click()
        await expect(action.get_by_role("status")).to_contain_text("it is no longer idle")
        await expect(page.locator("#series")).to_contain_text("declared it incomplete: the last phase is missing")


async def test_a_dead_letter_that_is_refused_again_can_be_settled_again(running: Serving) -> None:
    at = datetime.now(UTC).isoformat()
    dead = {"Id": 7, "SeriesInstanceUID": "1.2", "Instances": 3, "Answer": "422", "At": at}
    async with logged_in(running, "admin") as page:
        tell(running, "here", DeadLetters=1, Dead=[dead])
        await page.get_by_role("button", name="Replay or discard …").click()
        action = page.locator("#action")
        await action.get_by_role("button", name="Replay").click()
        await expect(action.locator(".order")).to_have_text("waits for the gateway's next heartbeat")
        (order,) = tell(running, "here")["Orders"]
        tell(running, "here", OrdersDone=[{"Number": order["Number"]}])
        await expect(action.locator(".order")).to_have_text("posted again")
        await expect(action.get_by_role("button", name="Replay")).to_be_hidden()
        tell(running, "here", DeadLetters=1, Dead=[dead])
        await expect(action.locator(".order")).to_have_text("refused again since")
        await action.get_by_role("button", name="Replay").click()
        await expect(action.locator(".order")).to_have_text("waits for the gateway's next heartbeat")
        (again,) = tell(running, "here")["Orders"]
        assert again["Number"] > order["Number"]


async def test_a_name_that_javascript_gives_to_all_objects_is_a_name_like_others(running: Serving) -> None:
    names, silent = ("constructor", "__proto__"), datetime.now(UTC) - timedelta(minutes=2)
    for name in names:
        tell(running, name)
    running.done(running.database.engine.write(lambda one: one.execute(update(gateways).values(At=silent))))
    async with logged_in(running, "series:read") as page:
        wrong = page.get_by_role("list", name="Problems")
        for name in names:
            await expect(wrong).to_contain_text(f"Gateway {name} is silent")
        await expect(page.locator("body")).not_to_contain_text("native code")


async def refuse_post(route: Route, request: Request) -> None:
    if request.method == "POST":
        await route.fulfill(status=409, json={"detail": "1000 orders wait"})
    else:
        await route.continue_()


async def test_a_reader_sees_all_that_is_wrong_and_no_action(running: Serving) -> None:
    prepare(running)
    async with logged_in(running, "series:read") as page:
        await expect(page.locator("#problems li")).to_have_count(4)
        await expect(page.locator("#arriving tbody tr")).to_have_count(1)
        await page.locator("#stored-table .series a").first.click()
        await expect(page.locator("#series .events")).to_be_visible()
        assert await page.locator(".act").count() == 0
        words = re.compile("settle|replay|discard|dismiss|declare|tell again", re.IGNORECASE)
        assert await page.locator("button").filter(has_text=words).count() == 0
