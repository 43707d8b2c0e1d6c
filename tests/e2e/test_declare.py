"""A person declares a series: the guide's commands, a real gateway that holds it open, and kill -9 in between."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.rig.http_server import Answer, Request, http_server
from bench.rig.processes import gateway, server, start_gateway
from tests.rig.commands import answer, served, server_command
from tests.rig.factories import SERIES, make_report
from tests.rig.papers import JOBS, filled, line, shell
from tests.rig.rows import record
from tests.rig.scripts import once, ran, script, until
from tests.rig.sending import new_series, send

HELD_OPEN = {"idle_timeout_s": 3600, "idle_policy": "fixed"}


def get(url: str, path: str) -> Any:
    return httpx.get(f"{url}{path}", trust_env=False).raise_for_status().json()


def arriving(url: str) -> dict[str, int]:
    """Open series as gateways say, and how many images each has."""
    states = [one["State"] for one in get(url, "/gateways")["gateways"]]
    return {series["SeriesInstanceUID"]: series["Instances"] for state in states for series in state["Arriving"]}


def orders(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(url, "/gateways/gateway-1/orders")["orders"]
    return found


def declare(folder: Path, word: str, series: str) -> dict[str, Any]:
    """The guide's command, for this series; what it prints."""
    (command,) = [one for one in (line(JOBS, f"python server.py declare SERIES {word}"),) if one]
    database = f"sqlite+aiosqlite:///{folder}/series.db"
    printed = shell(filled(f"{command} --json", SERIES=series), folder, DATABASE_URL=database)
    said: dict[str, Any] = json.loads(printed)
    return said


def test_the_guides_commands_close_a_series_that_is_held_open_and_take_that_back(tmp_path: Path) -> None:
    script(tmp_path)
    datasets = new_series(3)
    series = datasets[0].SeriesInstanceUID
    with server(tmp_path) as (_, url), gateway(tmp_path, url, id="gateway-1", **HELD_OPEN) as (process, port):
        send(port, datasets)
        until(lambda: arriving(url) == {series: 3})
        assert declare(tmp_path, "complete", series)["closing"] == ["gateway-1"]
        assert process.wait_for_event("series.reported")["verdict"] == "declared"
        process.wait_for_event("report.delivered")
        row = record(url, series)
        assert (row["Verdict"], row["NumInstances"], row["Revision"]) == ("declared", 3, 1)
        until(lambda: [order["State"] for order in orders(url)] == ["done"])
        events = {event["Event"]: event for event in get(url, f"/series/{series}/timeline")["events"]}
        told = events["series.declared"]["Details"]
        assert (told["Declared"], told["Because"]) == ("complete", "the scan was stopped, no more will come")
        assert "command line" in told["By"]
        assert row["Basis"] == f"declared complete by {told['By']}: {told['Because']}"
        once(tmp_path, url, "--since", "0", "--verdict", "declared", "--", "./run.sh", "{SeriesInstanceUID}")
        assert ran(tmp_path) == [[series, "1", "created", "declared", "declared", "3", "0"]]

        assert "nothing to do" in declare(tmp_path, "complete", series)["did"]
        assert declare(tmp_path, "incomplete", series)["verdict"] == "none (declared was withdrawn)"
        row = record(url, series)
        assert (row["Verdict"], row["Withdrawn"], row["FalseCompletions"]) == (None, "declared", 0)
        *_, change = get(url, "/changes")["changes"]
        assert (change["Verdict"], change["Kinds"], change["Revision"]) == (None, ["revised", "declared"], 2)


class Relay:
    """Stands between a gateway and its server, and lets through what it is told to."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.lets_through: Callable[[dict[str, Any]], bool] = lambda _: True
        self.url = ""

    def answer(self, request: Request) -> Answer:
        if request.method == "PUT" and not self.lets_through(json.loads(request.body)):
            return Answer(503)
        headers = {"Content-Type": "application/json"}
        url = self.server + request.path
        told = httpx.request(request.method, url, content=request.body, headers=headers, timeout=60, trust_env=False)
        return Answer(told.status_code, told.content)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    standing = Relay(url)
    with http_server(standing.answer) as standing.url:
        yield standing


@pytest.mark.slow
def test_an_order_that_comes_again_after_kill_9_closes_nothing_that_came_since(tmp_path: Path) -> None:
    """The gateway has closed the series, and dies before the server has heard of it."""
    first, late = (datasets := new_series(3))[:2], datasets[2:]
    series = first[0].SeriesInstanceUID
    environment = {f"GATEWAY_{name}".upper(): str(value) for name, value in HELD_OPEN.items()}
    environment["GATEWAY_ID"] = "gateway-1"
    with server(tmp_path) as (_, url), relay(url) as between:
        process, port = start_gateway(tmp_path, between.url, environment=environment)
        try:
            send(port, first)
            until(lambda: arriving(url) == {series: 2})
            between.lets_through = lambda state: not state.get("OrdersDone")
            declare(tmp_path, "complete", series)
            assert process.wait_for_event("order.done")["problem"] is None
        finally:
            process.kill()
        assert [order["State"] for order in orders(url)] == ["waiting"]
        between.lets_through = lambda _: False
        with gateway(tmp_path, between.url, id="gateway-1", **HELD_OPEN) as (again, port):
            until(lambda: httpx.get(f"{url}/series/{series}", trust_env=False).status_code == 200)
            send(port, late)
            between.lets_through = lambda _: True
            assert again.wait_for_event("order.done")["problem"] == "it was not open here"
            until(lambda: orders(url)[0]["State"] != "waiting")
            until(lambda: arriving(url) == {series: 1})
            row = record(url, series)
            assert (row["Verdict"], row["NumInstances"], row["Revision"]) == ("declared", 2, 1)
        assert again.events("series.reported")[0]["verdict"] == "drained"
        row = record(url, series)
        assert (row["Verdict"], row["NumInstances"], row["FalseCompletions"]) == ("drained", 3, 1)


@pytest.mark.parametrize("beside_a_server", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_series_is_declared_beside_a_server_and_without_one(
    tmp_path: Path, database_url: str, beside_a_server: bool
) -> None:
    with server(tmp_path, DATABASE_URL=database_url) as (_, url):
        report = make_report("1").model_dump(mode="json")
        httpx.post(f"{url}/series", json=report, trust_env=False).raise_for_status()
    with served(tmp_path, database_url, beside_a_server):
        said = answer(database_url, "declare", SERIES, "complete", "--because", "all is here")
        assert (said["verdict"], said["images"], said["closing"]) == ("declared", 1, [])
        for arguments, exit_code, words in (
            (("1.2.3", "complete", "--because", "x"), 1, "no series 1.2.3 is stored"),
            (("no\\UID", "complete", "--because", "x"), 1, "is stored"),
            ((SERIES, "complete", "--because", "x" * 257), 2, "1 to 256 characters"),
            ((SERIES, "complete", "--because", " "), 2, "1 to 256 characters"),
            ((SERIES, "complete", "--because", "a\nb"), 2, "1 to 256 characters"),
            ((SERIES, "complete"), 2, "--because"),
            ((SERIES, "maybe", "--because", "x"), 2, "maybe"),
        ):
            done = server_command(database_url, "declare", *arguments)
            assert done.returncode == exit_code, done.stderr
            assert words in done.stderr
            assert "Traceback" not in done.stderr
