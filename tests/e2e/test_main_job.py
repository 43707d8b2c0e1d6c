"""Real processes, real peers: images in on the DICOM side, exact rows out of the server."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.demo import expected, send_interleaved, studies
from bench.rig.peers import orthanc
from bench.rig.processes import ROOT, Process, gateway, server
from tests.rig.rows import record, wait_for_counts
from tests.rig.sending import association, new_series, send, send_in_parallel, write

TINY_ALPHA = 50


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("server")) as (_, url):
        yield url


@pytest.fixture(scope="module")
def running(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, int]]:
    with gateway(tmp_path_factory.mktemp("gateway"), url, idle_timeout_s=1.0) as running:
        yield running


@pytest.mark.peer("dcmtk")
def test_echoscu_is_answered(running: tuple[Process, int]) -> None:
    subprocess.run(["echoscu", "-aec", "STORESCP", "127.0.0.1", str(running[1])], check=True)


@pytest.mark.peer("dcmtk")
@pytest.mark.parametrize(
    "command", [["storescu", "-aec", "STORESCP"], ["dcmsend", "-aec", "STORESCP"]], ids=lambda c: c[0]
)
def test_dcmtk_sends_and_the_row_is_exact(
    running: tuple[Process, int], url: str, tmp_path: Path, command: list[str]
) -> None:
    datasets = new_series(12)
    files = write(tmp_path, datasets)
    subprocess.run([*command, "127.0.0.1", str(running[1]), *files], check=True)
    wait_for_counts(running[0], url, {datasets[0].SeriesInstanceUID: 12})


@pytest.mark.slow
@pytest.mark.peer("orthanc")
def test_orthanc_sends_all_studies_and_the_rows_are_exact(tmp_path: Path) -> None:
    files = studies()
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path, url, idle_timeout_s=1.0) as (process, port),
        orthanc(tmp_path, port) as pacs,
    ):
        pacs.send(sorted({pacs.upload(path) for path in files}))
        counts = {uid: len(sent.sop_instance_uids) for uid, sent in expected(files).items()}
        assert (len(counts), sum(counts.values())) == (14, 81)
        wait_for_counts(process, url, counts)


def test_pynetdicom_sends_real_studies_and_rows_carry_patient_and_modality(
    running: tuple[Process, int], url: str
) -> None:
    files = [path for path in studies() if "TINY_ALPHA" in str(path)]
    send_interleaved(files, running[1], lambda: None)
    ((uid, sent),) = expected(files).items()
    wait_for_counts(running[0], url, {uid: TINY_ALPHA})
    row = record(url, uid)
    assert (row["PatientID"], row["PatientName"], row["Modality"]) == (sent.patient_id, sent.patient_name, "CT")
    assert row["Verdict"] == "idle"


@pytest.mark.slow
def test_interleaved_repeated_and_late_images_while_the_server_is_down_are_counted_exactly(tmp_path: Path) -> None:
    one, two = new_series(105), new_series(105)
    late = one[100:] + two[100:]
    images = (one[:100] + two[:100]) * 2
    random.Random(3).shuffle(images)
    with server(tmp_path) as (process, url):
        port_of_server = int(url.rsplit(":", 1)[1])
        process.stop()  # from now on nobody answers there
    with gateway(tmp_path, url, idle_timeout_s=1.0, retry_max_s=1.0) as (process, port):
        send_in_parallel(port, [images[n::4] for n in range(4)])
        first = process.wait_for_event("report.delayed")
        while seconds_between(first, process.wait_for_event("report.delayed")) < 3:
            pass
        with server(tmp_path, port_of_server) as (_, url):
            wait_for_counts(process, url, {one[0].SeriesInstanceUID: 100, two[0].SeriesInstanceUID: 100})
            send(port, late)
            wait_for_counts(process, url, {one[0].SeriesInstanceUID: 105, two[0].SeriesInstanceUID: 105})
            listed = httpx.get(f"{url}/series", trust_env=False).json()["series"]
            assert [row["NumInstances"] for row in listed] == [105, 105]


def seconds_between(one: dict[str, Any], other: dict[str, Any]) -> float:
    first, second = (datetime.fromisoformat(event["timestamp"]) for event in (one, other))
    return (second - first).total_seconds()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_what_is_open_and_exits_0(url: str, tmp_path: Path, number: signal.Signals) -> None:
    datasets = new_series(5)
    with gateway(tmp_path, url, idle_timeout_s=600) as (process, port):
        send(port, datasets)
        process.popen.send_signal(number)
        assert process.popen.wait(120) == 0
        assert process.events("series.reported")[0]["verdict"] == "drained"
    assert record(url, datasets[0].SeriesInstanceUID)["NumInstances"] == 5


def test_undelivered_reports_at_the_end_of_the_drain_are_delivered_by_the_next_start(url: str, tmp_path: Path) -> None:
    datasets = new_series(2)
    with gateway(tmp_path, "http://127.0.0.1:9", idle_timeout_s=600, drain_timeout_s=0.3) as (process, port):
        send(port, datasets)
        assert process.stop() == 0
        (stopped,) = process.events("gateway.stopped")
        assert stopped["undelivered"] == 1
    with gateway(tmp_path, url, idle_timeout_s=600) as (process, _):
        wait_for_counts(process, url, {datasets[0].SeriesInstanceUID: 2})


def test_killed_gateway_forgets_nothing_it_acknowledged(url: str, tmp_path: Path) -> None:
    datasets = new_series(30)
    with gateway(tmp_path, url, idle_timeout_s=600) as (process, port):
        send(port, datasets[:20])
        process.kill()
    with gateway(tmp_path, url, idle_timeout_s=1) as (process, port):
        assert process.events("journal.opened")[0]["open_instances"] == 20
        send(port, datasets[15:])
        wait_for_counts(process, url, {datasets[0].SeriesInstanceUID: 30})


@pytest.mark.slow
def test_too_much_pending_is_refused_out_of_resources_and_accepted_again(url: str, tmp_path: Path) -> None:
    images = new_series(4)
    with gateway(tmp_path, url, max_pending_instances=3, idle_timeout_s=1) as (process, port):
        with association(port, images) as assoc:
            statuses = [assoc.send_c_store(image).Status for image in images]
            assert statuses == [0x0000, 0x0000, 0x0000, 0xA700]
            process.wait_for_event("gateway.saturated", reason="max_pending_instances=3 reached")
            process.wait_for_event("gateway.recovered")
            assert assoc.send_c_store(images[3]).Status == 0x0000
        wait_for_counts(process, url, {images[0].SeriesInstanceUID: 4})


@pytest.mark.slow
def test_second_gateway_on_one_journal_is_refused_with_the_cure(running: tuple[Process, int], tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", drain_timeout_s=0.3):
        second = Process("second", [sys.executable, str(ROOT / "client.py"), "--scp-port", "0"], tmp_path)
        assert second.popen.wait(120) == 1
        assert second.stop() == 1
        assert "used by another gateway. Stop it, or give each gateway its own" in "".join(second.lines)


def test_wrong_setting_stops_the_start_with_name_and_cure(tmp_path: Path) -> None:
    for command in (["client.py"], ["-m", "uvicorn", "server:app"]):
        root = Path(__file__).parents[2]
        wrong = {"GATEWAY_SCP_PROT": "1", "DATABASE_URL": "mysql://x"}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=root,
            env=os.environ | wrong,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert (
            "did you mean GATEWAY_SCP_PORT" if "client.py" in command else "DATABASE_URL='mysql://x'"
        ) in done.stderr


@pytest.mark.slow
def test_no_patient_name_in_any_output(tmp_path: Path) -> None:
    marked = new_series(3)
    for ds in marked:
        ds.PatientName, ds.PatientID = "Marked^Name", "MarkedID"
    broken = new_series(1)
    broken[0].PatientName = "Marked^Name"
    del broken[0].StudyInstanceUID
    with (
        server(tmp_path) as (server_process, url),
        gateway(tmp_path, url, idle_timeout_s=0.5, drain_timeout_s=1) as (process, port),
    ):
        send(port, marked)
        with pytest.raises(AssertionError):
            send(port, broken)
        process.wait_for_event("report.delivered")
        httpx.get(f"{url}/series", params={"PatientID": "MarkedID"}, trust_env=False)
        httpx.post(f"{url}/series", json={"PatientName": ["Marked^Name"]}, trust_env=False)
    output = "\n".join(process.lines + server_process.lines)
    assert "instance.refused" in output
    assert '"route": "/series"' in output
    assert "Marked" not in output
