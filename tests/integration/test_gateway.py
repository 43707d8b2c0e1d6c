"""The whole gateway in this process, `client.run`: an image in by DICOM, its row at a real server."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from client import run
from common import metrics
from common.control import request
from common.settings import GatewaySettings, load
from dicom.statuses import SUCCESS
from gateway.journal import Journal
from tests.rig.associations import associated
from tests.rig.factories import SERIES, UNBOUNDED, make_dataset
from tests.rig.foreign_pacs import counts, foreign_pacs, held, uids_of
from tests.rig.gateways import WITHIN_S, running
from tests.rig.serving import Serving, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


async def test_an_image_becomes_a_row_and_all_beside_its_way_sees_it(server: Serving, tmp_path: Path) -> None:
    series, trace = f"{SERIES}.7", tmp_path / "trace.jsonl"
    flags = {"id": "way", "trace_path": str(trace), "metrics_port": "0"}
    with capture_logs() as logs:
        async with running(tmp_path, server.url, **flags) as gateway:
            async with associated(await gateway.started()) as scu:
                assert (await scu.store(make_dataset(series=series))).Status == SUCCESS
            row = await gateway.asked(f"/series/{series}")
            assert not (await gateway.heard())["Stopped"]
            status = await asyncio.to_thread(request, gateway.settings.journal_path, WITHIN_S, "status")
            (metrics_port,) = [entry["port"] for entry in logs if entry["event"] == "metrics.served"]
            async with httpx.AsyncClient() as http:
                measured = (await http.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
        assert (await gateway.heard())["Stopped"]
    assert (row["Verdict"], row["NumInstances"], row["Source"]) == ("idle", 1, "SCU CT")
    assert status == {"running": True, "ready": True, "reason": None}
    assert "gateway_added_latency_seconds_count" in measured
    assert [json.loads(line)["event"] for line in trace.read_text().splitlines()] == ["opened", "image", "released"]
    assert gateway.undelivered == 0
    assert [entry["event"] for entry in logs if entry["event"].startswith("gateway.")] == [
        "gateway.started",
        "gateway.draining",
        "gateway.stopped",
    ]


async def test_what_only_the_pacs_has_is_asked_for_fetched_and_verified(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.open_series.RECEIVING_S", 0.1)
    received, asked = metrics.total(metrics.instances_received), metrics.total(metrics.pacs_questions)
    with foreign_pacs(counts(2, uids=uids_of(2)), [held(2)]) as port:
        flags = {"id": "asks", "pacs": f"SCU@127.0.0.1:{port}", "fetch_missing": "get"}
        async with running(tmp_path, server.url, **flags) as gateway:
            async with associated(await gateway.started()) as scu:
                assert (await scu.store(make_dataset("1"))).Status == SUCCESS
            row = await gateway.asked(f"/series/{SERIES}")
    assert (row["Verdict"], row["NumInstances"]) == ("verified", 2)
    assert metrics.total(metrics.instances_received) == received + 2
    assert metrics.total(metrics.pacs_questions) > asked


async def test_what_an_earlier_run_left_is_delivered_by_one_that_does_not_listen(
    server: Serving, tmp_path: Path
) -> None:
    series, nobody = f"{SERIES}.8", "http://127.0.0.1:9"
    flags = {"id": "left", "idle_timeout_s": "3600", "drain_timeout_s": "0.1"}
    async with running(tmp_path, nobody, **flags) as gateway, associated(await gateway.started()) as scu:
        assert (await scu.store(make_dataset(series=series))).Status == SUCCESS
    assert gateway.undelivered == 1
    async with Journal.open(gateway.settings.journal_path, UNBOUNDED) as journal:
        await journal.pause(time.time() + 3600.0)  # which an operator who drains does not wait for
    settings = load(GatewaySettings, {"id": "left", "journal_path": f"{tmp_path}/journal.db", "server_url": server.url})
    assert await run(settings, asyncio.Event(), listen=False) == 0
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get(f"/series/{series}")).json()["Verdict"] == "drained"
