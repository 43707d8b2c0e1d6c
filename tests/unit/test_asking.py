"""Questions to a PACS, without one: what an answer carries on, what is passed to a retrieve, and how asking ends."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, cast

import pytest

from common import metrics
from common.settings import GatewaySettings
from dicom.header import Wanted
from dicom.query_retrieve import Found
from dicom.scu import PacsUnavailable
from gateway.pacs import Asking, Pacs
from gateway.questions import Answer, Question
from models import Instance, SeriesKey
from tests.rig.factories import SERIES, STUDY, make_instance

KEY = SeriesKey(STUDY, SERIES, "P1")
HERE = frozenset({f"{SERIES}.1", f"{SERIES}.2"})
LISTED = {f"{SERIES}.{n}": "" for n in (1, 2, 3)}


def about(*, fetch: bool = False, classes: Collection[str] = (), **more: Any) -> Question:
    return Question(KEY, "PACS1", HERE, fetch, classes=frozenset(classes), **more)


async def stored(_: SeriesKey) -> Collection[str]:
    return ()


async def keep(_: Instance) -> int:
    return 0x0000


def pacs_of(handle_store: Any = keep, **settings: Any) -> Pacs:
    more = {"pacs": "PACS1@127.0.0.1:1", "pacs_timeout_s": 5} | settings
    return Pacs(GatewaySettings(**more), stored, handle_store)


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let every PACS say this at SERIES level, and list this at IMAGE level."""

    def say(found: Found, listed: Found | None = None) -> None:
        monkeypatch.setattr("gateway.pacs.find", lambda *_, **__: found)
        monkeypatch.setattr("gateway.pacs.find_images", lambda *_, **__: listed)

    return say


async def test_what_was_odd_of_a_count_is_told_though_it_confirms(finds: Callable[..., None]) -> None:
    finds(Found(2, problem="1 of 2 odd"))
    answer = await pacs_of().ask(about())
    assert answer == Answer("PACS1", HERE, known=2, count=2, confirmed=True, problem="1 of 2 odd")


async def test_what_was_odd_of_a_count_and_of_a_list_is_told_with_what_is_missing(finds: Callable[..., None]) -> None:
    finds(Found(3, problem="count odd"), Found(3, LISTED, problem="list odd"))
    answer = await pacs_of().ask(about())
    assert (answer.count, answer.missing, answer.confirmed) == (3, (f"{SERIES}.3",), False)
    assert answer.problem == "count odd; list odd"


async def test_a_list_that_came_with_the_count_is_not_asked_for_again(finds: Callable[..., None]) -> None:
    finds(Found(3, LISTED))
    assert (await pacs_of().ask(about())).missing == (f"{SERIES}.3",)


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_no_list_is_asked_for_where_the_pacs_has_no_more_than_is_known(
    finds: Callable[..., None], count: int
) -> None:
    finds(Found(count))
    answer = await pacs_of().ask(about(revision=2))
    assert (answer.count, answer.missing, answer.problem) == (count, (), None)


async def test_a_retrieve_gets_the_missing_with_classes_and_a_site_s_own_attributes(
    finds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def get(line: Any, *, key: SeriesKey, **rest: Any) -> int:
        given.update(rest, key=key)
        return int(rest["store"](make_instance("3")) == 0x0000)

    monkeypatch.setattr("gateway.pacs.get", get)
    finds(Found(3, LISTED))
    pacs = pacs_of(fetch_missing="get", extra_attributes="EchoTime")
    answer = await pacs.ask(about(fetch=True, classes={"1.9", "1.8"}))
    assert (answer.fetched, answer.problem) == (1, None)
    assert given["key"] == KEY
    assert given["missing"] == {f"{SERIES}.3": "1.8\\1.9"}
    assert cast(Wanted, given["wanted"]).vrs.keys() > {0x00180081}


async def test_a_move_names_the_missing_and_our_title(
    finds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def move(line: Any, **rest: Any) -> int:
        given.update(rest)
        return 0

    monkeypatch.setattr("gateway.pacs.move", move)
    finds(Found(3, LISTED))
    answer = await pacs_of(fetch_missing="move", ae_title="OURS").ask(about(fetch=True))
    assert given == {"key": KEY, "uids": [f"{SERIES}.3"], "to": "OURS"}
    assert (answer.fetched, answer.problem) == (0, "it gave 0 of 1 missing images")


@pytest.mark.parametrize(("status", "sop", "fetched"), [(0x0000, "3", 1), (0xA700, "3", 0), (0x0000, "9", 0)])
async def test_of_a_retrieve_that_breaks_off_what_was_missing_and_is_kept_counts(
    finds: Callable[..., None], monkeypatch: pytest.MonkeyPatch, status: int, sop: str, fetched: int
) -> None:
    async def handle_store(_: Instance) -> int:
        return status

    def get(line: Any, *, store: Callable[[Instance], int], **_: Any) -> int:
        store(make_instance(sop))
        raise PacsUnavailable("broke off")

    monkeypatch.setattr("gateway.pacs.get", get)
    finds(Found(3, LISTED))
    answer = await pacs_of(handle_store, fetch_missing="get").ask(about(fetch=True))
    assert (answer.fetched, answer.problem) == (fetched, "fetching: broke off")


# --- asking in the background ---


class Scripted:
    """Stands where Pacs is: answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.may_answer = asyncio.Event()

    async def ask(self, question: Question) -> Answer:
        self.asked.append(question)
        await self.may_answer.wait()
        return Answer("PACS1", HERE, count=2)


async def test_answers_are_passed_on_and_counted() -> None:
    pacs, answers = Scripted(), asyncio.Queue[tuple[SeriesKey, Answer]]()

    async def answered(key: SeriesKey, answer: Answer) -> None:
        answers.put_nowait((key, answer))

    before = metrics.total(metrics.pacs_questions)
    pacs.may_answer.set()
    async with Asking(cast(Pacs, pacs), answered) as asking:
        asking.ask(about())
        assert await answers.get() == (KEY, Answer("PACS1", HERE, count=2))
    assert metrics.total(metrics.pacs_questions) == before + 1


async def test_at_the_end_open_questions_are_cancelled_and_no_more_are_asked() -> None:
    pacs, answers = Scripted(), []

    async def answered(key: SeriesKey, answer: Answer) -> None:
        answers.append(answer)

    async with Asking(cast(Pacs, pacs), answered) as asking:
        asking.ask(about())
        await asyncio.sleep(0)
    asking.ask(about())
    await asyncio.sleep(0)
    assert len(pacs.asked) == 1
    assert answers == []
