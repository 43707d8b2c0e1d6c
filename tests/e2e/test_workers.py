"""Several workers on one port: exact rows whichever worker got which image, and a killed one comes back."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bench.rig.peers import free_port
from bench.rig.processes import ROOT, Process, gateway, server, without_settings
from tests.rig.commands import client, client_json
from tests.rig.rows import record, scrape
from tests.rig.sending import new_series, send, send_in_parallel


def started(process: Process, n: int) -> dict[int, dict[str, Any]]:
    """The `gateway.started` events of the next `n` workers to start, the first of which was waited for already."""
    seen = process.events("gateway.started")
    while len(seen) < n:
        process.wait_for_event("gateway.started")
        seen = process.events("gateway.started")
    return {event["worker"]: event for event in seen}


@pytest.mark.slow
def test_workers_share_a_port_and_a_killed_one_goes_on_with_its_journal(tmp_path: Path) -> None:
    datasets = new_series(60)
    with server(tmp_path) as (_, url), gateway(tmp_path, url, workers=2, idle_timeout_s=600) as (process, port):
        assert {event["port"] for event in started(process, 2).values()} == {port}
        send_in_parallel(port, [datasets[n::12] for n in range(12)])
        held = client_json(tmp_path, "--workers", "2", "status")
        assert [one["ready"] for one in held] == [True, True]
        assert sum(one["open_instances"] for one in held) == 60
        assert all(one["open_instances"] for one in held), "the kernel gave every association to one worker"
        for child in psutil.Process(process.popen.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        process.wait_for_event("worker.ended")
        started(process, 4)
        assert client_json(tmp_path, "--workers", "2", "drain") == {"reported": 2, "undelivered": 0}
        assert record(url, datasets[0].SeriesInstanceUID)["NumInstances"] == 60
        send(port, new_series(1))
        assert process.stop() == 0
        assert len(process.events("gateway.stopped")) == 2


@pytest.mark.slow
def test_workers_that_cannot_listen_end_with_the_cure(tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", drain_timeout_s=0.1) as (_, port):
        out = client(tmp_path, "--workers", "2", "--scp-port", str(port), exit_code=1)
        assert "choose another address or port" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_ended_while_it_starts_is_no_failure(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.rig.programs.starting"],
        cwd=tmp_path,
        env=without_settings() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
            os.kill(-process.pid if number == signal.SIGINT else process.pid, number)  # Ctrl-C is for all of them
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_commands_ask_for_the_workers_journal_where_an_id_is_not_enough(tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", workers=2, drain_timeout_s=0.1) as (process, _):
        started(process, 2)
        out = client(tmp_path, "--workers", "2", "dead-letters", "replay", "1", exit_code=2)
        assert "add --workers 1 --journal-path" in out
        assert client_json(tmp_path, "--workers", "2", "dead-letters", "replay", "--all") == {"replayed": []}
        one = ("--journal-path", "gateway-journal-2.db")
        assert client_json(tmp_path, *one, "dead-letters", "list") == []


@pytest.mark.slow
def test_each_worker_has_its_own_metrics_and_its_own_place_on_the_page(tmp_path: Path) -> None:
    reserved = free_port()
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path, url, workers=2, metrics_port=reserved, id="g") as (process, port),
    ):
        started(process, 2)
        send(port, new_series(1))
        process.wait_for_event("report.delivered")
        received = [scrape(f"http://127.0.0.1:{reserved + n}")["gateway_instances_received_total",] for n in (0, 1)]
        assert sorted(received) == [0, 1]
        assert process.stop() == 0
        gateways = httpx.get(f"{url}/gateways", trust_env=False).json()["gateways"]
    assert [(one["State"]["GatewayID"], one["State"]["Stopped"]) for one in gateways] == [("g-1", True), ("g-2", True)]
