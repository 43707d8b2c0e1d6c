"""What Prometheus is told is what happened."""

import time
from pathlib import Path

import httpx
import pytest
from pydicom.uid import generate_uid

from bench.rig.processes import Process, gateway, server
from tests.rig.factories import encode, make_dataset
from tests.rig.rows import scrape
from tests.rig.sending import association, new_series, send


def metrics_url(process: Process) -> str:
    (served,) = process.events("metrics.served")
    return f"http://127.0.0.1:{served['port']}"


@pytest.mark.slow
def test_a_gateways_metrics_count_what_it_took_refused_and_delivered(tmp_path: Path) -> None:
    kept, refused = new_series(7), new_series(1)
    refused[0].StudyInstanceUID = ""
    late = make_dataset("99", study=kept[0].StudyInstanceUID, series=kept[0].SeriesInstanceUID)
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path, url, idle_timeout_s=0.5, metrics_port=0, allowed_peers="SCU") as (process, port),
    ):
        send(port, kept)
        with association(port, refused) as assoc:
            assert assoc.send_c_store(refused[0]).Status == 0xC000
        with pytest.raises(AssertionError), association(port, kept, ae_title="STRANGER"):
            pass
        process.wait_for_event("report.delivered")
        send(port, [late])
        process.wait_for_event("report.delivered", revision=2)
        seen = scrape(metrics_url(process))
        ended = [event["instances"] for event in process.events("association.ended")]
    assert ended == [7, 0, 1]
    assert seen["gateway_associations_total",] == 3
    assert seen["gateway_associations_refused_total", "ae_title"] == 1
    assert seen["gateway_instances_received_total",] == 9
    assert seen["gateway_received_bytes_total",] == sum(len(encode(ds)) for ds in [*kept, *refused, late])
    assert seen["gateway_store_responses_total", "0x0000"] == 8
    assert seen["gateway_store_responses_total", "0xC000"] == 1
    assert seen["gateway_store_seconds_count",] == 9
    assert seen["gateway_journal_commit_instances_sum",] == 8
    assert seen["gateway_journal_commit_seconds_count",] == seen["gateway_journal_commit_instances_count",] > 0
    assert seen["gateway_journal_bytes",] > 0
    assert (seen["gateway_inbox_size",], seen["gateway_inbox_instances",]) == (1000, 0)
    assert (seen["gateway_open_series",], seen["gateway_open_instances",]) == (0, 0)
    assert seen["gateway_series_reported_total", "idle"] == 2
    assert seen["gateway_false_completions_total", "idle"] == 1
    assert seen["gateway_added_latency_seconds_count",] == seen["gateway_row_latency_seconds_count",] == 2
    assert seen["gateway_row_latency_seconds_sum",] > seen["gateway_added_latency_seconds_sum",] > 0.9
    assert seen["gateway_dispatch_attempts_total", "delivered"] == 2
    assert (seen["gateway_undelivered_reports",], seen["gateway_oldest_undelivered_seconds",]) == (0, 0)
    assert (seen["gateway_dead_letters",], seen["gateway_saturated",]) == (0, 0)


@pytest.mark.slow
def test_a_gateway_whose_server_is_away_says_how_long_its_oldest_report_waits(tmp_path: Path) -> None:
    began = time.time()
    with gateway(tmp_path, "http://127.0.0.1:9", idle_timeout_s=0.3, metrics_port=0, drain_timeout_s=1) as (
        process,
        port,
    ):
        send(port, new_series(1))
        process.wait_for_event("report.delayed", attempt=3)
        seen = scrape(metrics_url(process))
        assert seen["gateway_undelivered_reports",] == 1
        assert 0 < seen["gateway_oldest_undelivered_seconds",] <= time.time() - began
        assert seen["gateway_dispatch_attempts_total", "delayed"] >= 3


def test_what_is_open_is_told(tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", idle_timeout_s=600, metrics_port=0, drain_timeout_s=0.1) as (
        process,
        port,
    ):
        send(port, new_series(3))
        with association(port, series := new_series(2)) as assoc:
            assoc.send_c_store(series[0])
            seen = scrape(metrics_url(process))
    assert (seen["gateway_open_series",], seen["gateway_open_instances",]) == (2, 4)
    assert (seen["gateway_associations_open",], seen["gateway_pending_instances",]) == (1, 4)


def test_a_gateway_that_is_full_says_so(tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", metrics_port=0, max_pending_instances=2, drain_timeout_s=1) as (
        process,
        port,
    ):
        series = new_series(3)
        with association(port, series) as assoc:
            assert [assoc.send_c_store(ds).Status for ds in series] == [0, 0, 0xA700]
        with pytest.raises(AssertionError), association(port, series):
            pass
        seen = scrape(metrics_url(process))
        assert seen["gateway_saturated",] == 1
        assert seen["gateway_store_responses_total", "0xA700"] == 1
        assert seen["gateway_associations_refused_total", "saturated"] == 1


@pytest.mark.slow
def test_a_refused_report_is_a_dead_letter_until_it_is_discarded(tmp_path: Path) -> None:
    with server(tmp_path, SERVER_MAX_BODY_BYTES="1024") as (_, url):
        with gateway(tmp_path, url, idle_timeout_s=0.3, metrics_port=0) as (process, port):
            send(port, new_series(40))  # its report is longer than 1024 bytes
            process.wait_for_event("report.rejected")
            seen = scrape(metrics_url(process))
        assert seen["gateway_dead_letters",] == 1
        assert seen["gateway_dispatch_attempts_total", "rejected"] == 1


def test_the_servers_metrics_count_what_became_of_reports(tmp_path: Path) -> None:
    uid, study = generate_uid(), generate_uid()
    report = {"SeriesInstanceUID": uid, "StudyInstanceUID": study, "PatientID": "1", "NumInstances": 2}
    with server(tmp_path) as (_, url), httpx.Client(base_url=url, trust_env=False) as http:
        http.post("/series", json=report)
        http.post("/series", json=report)
        http.post("/series", json=report | {"NumInstances": 5})
        http.post("/series", json=report | {"PatientID": "another"})
        http.post("/series", json={"PatientName": "Marked^Name"})
        http.get(f"/series/{uid}")
        http.get("/nowhere")
        http.request("PURGE", "/nowhere")
        seen = scrape(url)
        assert http.get("/metrics").headers["Content-Type"].startswith("text/plain")
    outcomes = {"created": 1, "unchanged": 1, "revised": 1, "conflict": 1}
    assert {outcome: seen["server_reports_stored_total", outcome] for outcome in outcomes} == outcomes
    assert seen["server_instances_stored_total",] == 5
    assert seen["server_requests_total", "POST", "/series", "201"] == 1
    assert seen["server_requests_total", "POST", "/series", "200"] == 3
    assert seen["server_requests_total", "POST", "/series", "422"] == 1
    assert seen["server_requests_total", "GET", "/series/{SeriesInstanceUID}", "200"] == 1
    assert seen["server_requests_total", "GET", "-", "404"] == 1
    assert seen["server_requests_total", "other", "-", "404"] == 1
    assert seen["server_request_seconds_count", "/series"] == 5
    assert seen["server_database_seconds_count", "write"] >= 4
    assert uid not in str(seen)
