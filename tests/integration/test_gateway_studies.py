"""The whole gateway and the studies that it holds, before a server that gives orders and keeps what it is told."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.rig.http_server import Answer, Request, http_server
from dicom.statuses import SUCCESS
from models import SeriesReport
from tests.rig.associations import associated
from tests.rig.factories import SERIES, STUDY, make_dataset, stored
from tests.rig.foreign_pacs import NOTHING, foreign_pacs, saying, study
from tests.rig.gateways import WITHIN_S, running


class Ordering:
    """Gives an order until it hears its outcome; takes no report before `open`."""

    def __init__(self, *orders: dict[str, Any]) -> None:
        self.orders = list(orders)
        self.open = True
        self.states: list[dict[str, Any]] = []
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.url = ""

    def answer(self, request: Request) -> Answer:
        if request.method == "GET":
            return Answer(404)
        said = json.loads(request.body)
        if request.method == "PUT":
            return self.hear(said)
        if request.path == "/series" and not self.open:
            return Answer(503)
        self.posts.append((request.path, said))
        if request.path == "/series":
            return Answer(200, stored(SeriesReport.model_validate(said)).content)
        return Answer(204)

    def hear(self, state: dict[str, Any]) -> Answer:
        self.states.append(state)
        done = [one["Number"] for one in state.get("OrdersDone", [])]
        self.orders = [order for order in self.orders if order["Number"] not in done]
        return Answer(200, json.dumps({"Orders": self.orders}).encode())


@contextmanager
def ordering(*orders: dict[str, Any]) -> Iterator[Ordering]:
    server = Ordering(*orders)
    with http_server(server.answer) as server.url:
        yield server


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # noqa: ASYNC110 - it is the server's thread that changes it
            await asyncio.sleep(0.02)


async def test_an_order_to_count_a_study_is_carried_out_and_its_outcome_told(tmp_path: Path) -> None:
    about = {"Kind": "count", "AgeS": 1.0, "SeriesInstanceUID": SERIES, "StudyInstanceUID": STUDY}
    orders = [
        {"Number": 1, "CallingAETitle": "PACS1", **about},
        {"Number": 2, "CallingAETitle": "OTHER", **about},
    ]
    with ordering(*orders) as server, foreign_pacs(saying(study(NOTHING))) as port:
        async with running(tmp_path, server.url, id="gateway-1", pacs=f"PACS1@127.0.0.1:{port}"):
            await until(lambda: not server.orders)
    ((path, counts),) = server.posts
    assert path == f"/studies/{STUDY}/counts"
    assert (counts["Series"], counts["Instances"], counts["GatewayID"]) == (2, 7, "gateway-1")
    told = {one["Number"]: one["Problem"] for state in server.states for one in state.get("OrdersDone", [])}
    assert told[1] is None
    assert "GATEWAY_PACS" in told[2]


async def test_a_study_is_told_as_open_until_the_server_has_its_series_with_the_counts_of_its_pacs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.open_series.RECEIVING_S", 0.1)

    def held() -> Any:
        return server.states[-1].get("OpenStudies") if server.states else None

    flags = {"id": "gateway-1", "idle_timeout_s": "0.5"}
    with ordering() as server, foreign_pacs(saying(study(NOTHING), images=1)) as port:
        server.open = False
        async with running(tmp_path, server.url, pacs=f"SCU@127.0.0.1:{port}", **flags) as gateway:
            await until(lambda: held() == [])
            async with associated(await gateway.started()) as scu:
                assert (await scu.store(make_dataset("1"))).Status == SUCCESS
                await until(lambda: held() == [STUDY])
            await until(lambda: bool(server.states[-1]["UndeliveredReports"]))
            first = len(server.states)
            server.open = True
            await until(lambda: held() == [])
            states = [state["OpenStudies"] for state in server.states[first - 1 :]]
    assert [bool(one) for one in states] == sorted((bool(one) for one in states), reverse=True)  # once gone, gone
    ((_, report),) = server.posts
    assert (report["StudyCounts"]["Series"], report["StudyCounts"]["Instances"]) == (2, 7)


async def test_the_first_heartbeat_with_studies_after_a_restart_names_what_an_earlier_run_left(tmp_path: Path) -> None:
    with ordering() as server:
        server.open = False
        flags = {"id": "gateway-1", "idle_timeout_s": "3600", "drain_timeout_s": "0.1"}
        async with running(tmp_path, server.url, **flags) as gateway, associated(await gateway.started()) as scu:
            assert (await scu.store(make_dataset("1"))).Status == SUCCESS
        server.states.clear()
        async with running(tmp_path, server.url, **flags):
            await until(lambda: any("OpenStudies" in state for state in server.states))
    assert next(state["OpenStudies"] for state in server.states if "OpenStudies" in state) == [STUDY]
