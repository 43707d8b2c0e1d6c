"""Traces of real processes, as an OpenTelemetry collector gets them."""

from collections import defaultdict
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench.rig.otlp import sink
from bench.rig.processes import running, server, start_gateway, start_server
from tests.rig.sending import new_series, send

IMAGES = 5


def by_name(spans: list[Span]) -> dict[str, list[Span]]:
    named: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        named[span.name].append(span)
    return named


@pytest.mark.slow
def test_a_series_can_be_followed_from_its_images_to_its_row(tmp_path: Path) -> None:
    series = new_series(IMAGES)
    with sink() as collector:
        http, url = start_server(tmp_path, **collector.environment)
        with running(http):
            environment = collector.environment | {"GATEWAY_IDLE_TIMEOUT_S": "0.5"}
            process, port = start_gateway(tmp_path, url, environment=environment)
            with running(process):
                send(port, series)
                delivered = process.wait_for_event("report.delivered")
        spans = by_name(collector.spans())  # they have ended, and exported what was left
    assert {name: len(some) for name, some in spans.items()} == {
        "association": 1,
        "receive": 1,
        "series": 1,
        "POST /series": 2,  # the gateway's, and the server's
        "store": 1,
    }
    (of_series,) = spans["series"]
    assert {s.trace_id for name in ("POST /series", "store") for s in spans[name]} == {of_series.trace_id}
    (receive,) = spans["receive"]
    assert {(a.key, a.value.int_value) for a in receive.attributes} >= {("images", IMAGES)}
    assert receive.trace_id == spans["association"][0].trace_id != of_series.trace_id
    assert [link.span_id for link in of_series.links] == [receive.span_id]
    trace_id = of_series.trace_id.hex()
    (reported,), (stored,) = process.events("series.reported"), http.events("series.stored")
    assert delivered["trace_id"] == reported["trace_id"] == stored["trace_id"] == trace_id
    assert [event.name for event in of_series.events][-1] == "series.reported"


@pytest.mark.slow
def test_a_trace_goes_on_after_kill_9(tmp_path: Path) -> None:
    """A report that waits in the journal keeps its trace."""
    with sink() as collector:
        environment = collector.environment | {"GATEWAY_IDLE_TIMEOUT_S": "0.5"}
        process, port = start_gateway(tmp_path, "http://127.0.0.1:9", environment=environment)
        send(port, new_series(1))
        trace_id = process.wait_for_event("report.delayed")["trace_id"]
        process.kill()
        with server(tmp_path) as (_, url):
            process, _ = start_gateway(tmp_path, url, environment=environment)
            with running(process):
                assert process.wait_for_event("report.delivered")["trace_id"] == trace_id
        posts = by_name(collector.spans())["POST /series"]
    assert trace_id in {post.trace_id.hex() for post in posts}


@pytest.mark.slow
def test_a_collector_that_is_not_there_holds_up_nothing(tmp_path: Path) -> None:
    unreachable = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "GATEWAY_IDLE_TIMEOUT_S": "0.5"}
    with server(tmp_path) as (_, url):
        process, port = start_gateway(tmp_path, url, environment=unreachable)
        with running(process):
            send(port, new_series(3))
            assert process.wait_for_event("report.delivered")["stored"] == 3
        assert process.popen.returncode == 0
