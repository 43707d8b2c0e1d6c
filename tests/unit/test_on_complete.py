"""What `on-complete` makes of a change, and what it writes down."""

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError
from rich.console import Console

from api.answers import ChangePage
from api.cli.backlog import Backlog
from api.cli.remote import Remote, Unreadable
from api.cli.runner import PLACES, Order, Runner, Running, filled, unknown_places, variables
from api.cli.terminal import render
from models import Change
from tests.rig.terminals import plain

FINAL = frozenset({"verified", "expected", "idle"})


def change(number: int, series: str = "1.2", **more: Any) -> Change:
    values = {"SeriesInstanceUID": series, "StudyInstanceUID": "1", "Kinds": ["created"], "Revision": 1}
    values |= {"NumInstances": 2, "Verdict": "idle", "At": datetime(2026, 1, 1, tzinfo=UTC)}
    return Change.model_validate({"Number": number} | values | more)


@pytest.fixture
def backlog(tmp_path: Path) -> Iterator[Backlog]:
    with Backlog.open(tmp_path / "jobs.db") as backlog:
        yield backlog


def test_words_are_filled_and_nothing_else_is_read() -> None:
    words = ["run", "{SeriesInstanceUID}", "n={NumInstances};$(id)", '{"a": 1}', "{}", "{x-y}"]
    assert filled(words, change(7)) == ["run", "1.2", "n=2;$(id)", '{"a": 1}', "{}", "{x-y}"]
    assert unknown_places([*words, "{PatientName} {Revision}"]) == ["PatientName"]


def test_what_a_sender_chooses_freely_is_in_the_environment_only() -> None:
    one = change(1, Modality="-rf", Source="\0; rm")
    assert not {"Modality", "Source"} & {*PLACES}
    assert (variables(one)["MODALITY"], variables(one)["SOURCE"]) == ("-rf", "; rm")
    for wrong in ("../../etc", "-rf", "", "1.2 3"):
        with pytest.raises(ValidationError):
            filled(["run"], change(1, series=wrong))


def test_of_each_series_the_first_is_due_until_it_is_done_or_given_up(backlog: Backlog) -> None:
    backlog.take([change(n, series=f"1.{n % 2}") for n in range(1, 7)], 9, first_only=False)

    def due(*besides: str, now: float = 0.0) -> list[int]:
        return [job.change.Number for job in backlog.due(now, besides, 9)]

    assert (due(), due("1.1"), backlog.place()) == ([1, 2], [2], 9)
    backlog.done(1)
    backlog.delay(2, 5.0, "exit code 1")
    assert (due(), due(now=5.0)) == ([3], [2, 3])
    backlog.fail(2, "exit code 1")
    assert (due(), backlog.counts()) == ([3, 4], (4, 1))
    assert backlog.replay() == 1
    assert due() == [2, 3]


def test_a_page_that_cannot_be_written_moves_no_place(backlog: Backlog) -> None:
    backlog.take([change(1)], 1, first_only=False)
    with pytest.raises(sqlite3.IntegrityError):
        backlog.take([change(2), change(1)], 3, first_only=False)
    assert (backlog.place(), backlog.counts()) == (1, (1, 0))


class Pages:
    """A server that fails first, and then tells these changes."""

    def __init__(self, *changes: Change) -> None:
        self.changes, self.failures = [*changes], 1

    async def get(self, path: str, shape: type[ChangePage], since: int | str, limit: int = 0) -> ChangePage:
        if self.failures:
            self.failures -= 1
            raise Unreadable("HTTP 503")
        last = self.changes[-1].Number
        some = [] if since == "now" else [one for one in self.changes if one.Number > int(since)]
        return ChangePage(changes=some, last=last, done=True)


async def test_a_change_that_is_none_is_given_up_and_the_rest_goes_on(backlog: Backlog, tmp_path: Path) -> None:
    pages = Pages(change(1, series="../x"), change(2), change(3, Kinds=["conflict"]), change(4, Verdict=None))
    order = Order((sys.executable, "-c", ""), frozenset(), FINAL, False, 0, 1, 1, 60.0)
    with (tmp_path / "lock").open("w") as lock:
        runner = Runner(order, cast("Remote", pages), backlog, lock.fileno())
        with pytest.raises(Unreadable):
            await runner.run(asyncio.Event(), once=True)
        await runner.run(asyncio.Event(), once=True)
    assert (runner.ended, runner.given_up, backlog.place()) == (1, 1, 4)
    assert [(one["change"], one["problem"]) for one in backlog.failed()] == [
        (1, "its UID contains other characters than letters, digits and dots")
    ]


OF_STUDY: dict[str, Any] = {"Subject": "study", "SeriesInstanceUID": None, "NumSeries": 3, "Modality": "CT\\SR"}


def order_for_studies(**more: Any) -> Order:
    given: dict[str, Any] = {"modalities": frozenset(), "verdicts": FINAL, "first_only": False, "since": 0}
    given |= {"jobs": 1, "tries": 1, "timeout_s": 60.0, "command": (sys.executable, "-c", "")}
    return Order(**given | more, subject="study")


def test_a_studys_words_and_variables_are_its_own() -> None:
    places = order_for_studies().places
    one = change(7, **OF_STUDY)
    assert filled(["{StudyInstanceUID}", "{NumSeries}/{NumInstances}"], one, places) == ["1", "3/2"]
    assert unknown_places(["{SeriesInstanceUID}"], places) == ["SeriesInstanceUID"]
    assert unknown_places(["{NumSeries}"]) == ["NumSeries"]
    told = variables(one)
    assert (told["STUDY_INSTANCE_UID"], told["SERIES_INSTANCE_UID"], told["NUM_SERIES"]) == ("1", "", "3")
    assert (told["MODALITY"], variables(change(7))["NUM_SERIES"]) == ("CT\\SR", "")
    with pytest.raises(ValidationError):
        filled(["run"], change(7, **OF_STUDY | {"StudyInstanceUID": "../x"}), places)


def test_a_study_is_wanted_by_any_of_its_modalities_and_a_series_never_in_its_place() -> None:
    assert order_for_studies(modalities=frozenset({"SR"})).wants(change(1, **OF_STUDY))
    assert not order_for_studies(modalities=frozenset({"MR"})).wants(change(1, **OF_STUDY))
    assert not order_for_studies().wants(change(1))
    assert not order_for_studies().wants(change(1, **OF_STUDY | {"Verdict": None}))
    of_series = Order(("true",), frozenset(), FINAL, False, 0, 1, 1, 60.0)
    assert not of_series.wants(change(1, **OF_STUDY))


def test_jobs_of_studies_are_done_one_after_the_other_for_each_study(backlog: Backlog) -> None:
    studies = [change(n, **OF_STUDY | {"StudyInstanceUID": f"1.{n % 2}"}) for n in range(1, 5)]
    backlog.take(studies, 4, first_only=False)
    assert [job.change.Number for job in backlog.due(0.0, (), 9)] == [1, 2]
    assert [job.change.Number for job in backlog.due(0.0, ["1.1"], 9)] == [2]
    backlog.fail(1, "exit code 1")
    (failed,) = backlog.failed()
    assert (failed["study"], "series" in failed) == ("1.1", False)


def test_a_file_of_jobs_is_for_series_or_for_studies(backlog: Backlog, tmp_path: Path) -> None:
    backlog.take([], 7, first_only=False)  # as a version that knew no studies left it
    assert not backlog.belongs_to("study")
    assert backlog.belongs_to("series")
    with Backlog.open(tmp_path / "studies.db") as another:
        assert another.belongs_to("study")
        assert not another.belongs_to("series")


class Asked(Pages):
    """A server that remembers of what it was asked to tell."""

    async def get(
        self, path: str, shape: type[ChangePage], since: int | str, limit: int = 0, subject: str | None = None
    ) -> ChangePage:
        if since != "now":
            self.subject = subject
        return await super().get(path, shape, since, limit)


@pytest.mark.parametrize(("subject", "asked"), [("series", None), ("study", "study")])
async def test_studies_are_asked_for_and_series_as_an_earlier_server_knows_it(
    backlog: Backlog, tmp_path: Path, subject: Any, asked: str | None
) -> None:
    pages = Asked(change(1), change(2, **OF_STUDY))
    pages.failures = 0
    order = Order((sys.executable, "-c", ""), frozenset(), FINAL, False, 0, 1, 1, 60.0, subject=subject)
    with (tmp_path / "lock").open("w") as lock:
        runner = Runner(order, cast("Remote", pages), backlog, lock.fileno())
        await runner.run(asyncio.Event(), once=True)
    assert (pages.subject, runner.ended, runner.given_up) == (asked, 1, 0)


class Silent:
    """A server that nobody asks."""


def shown(backlog: Backlog, *, width: int = 100, height: int = 30, **state: Any) -> str:
    """What a terminal shows while it works, colours included."""
    order = Order(("true",), frozenset(), FINAL, False, 0, 1, 1, 1.0)
    runner = Runner(order, cast("Remote", Silent()), backlog, 0, **state)
    console = Console(width=width, height=height, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(render(runner, width, height))
    return capture.get()


GREEN = "\x1b[32m"


def test_what_has_failed_is_no_green_bar(backlog: Backlog) -> None:
    backlog.take([change(1), change(2, series="1.3")], 2, first_only=False)
    backlog.done(1)
    backlog.done(2)
    assert GREEN in shown(backlog, ended=2)
    backlog.take([change(3)], 3, first_only=False)
    assert GREEN not in shown(backlog, ended=2)
    backlog.fail(3, "exit code 1")
    failing = shown(backlog, ended=2, given_up=1)
    assert GREEN not in failing
    assert "\x1b[31m1 failed (--failed)" in failing


@pytest.mark.parametrize("width", [20, 60, 79, 80])
@pytest.mark.parametrize("height", [4, 9])
def test_what_runs_fits_a_small_terminal(backlog: Backlog, width: int, height: int) -> None:
    backlog.take([change(1), change(2, series="1.3"), change(3, series="1.4")], 3, first_only=False)
    backlog.fail(3, "exit code 1")
    running = {uid: Running(change(1, series=uid), 0.0) for uid in ("1.2", "1.3")}
    lines = plain(shown(backlog, width=width, height=height, running=running, problem="x" * 200)).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "1 failed" in lines[0]
