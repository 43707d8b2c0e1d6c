"""Traces: one of each association, one of each revision of a series; never an exception's text."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from client import CLOSED, Gateway
from common.settings import GatewaySettings, load
from common.tracing import CannotTrace, Spans, named, open_spans
from gateway.dispatcher import SeriesDispatcher
from gateway.idle import Fixed
from gateway.journal import JournalUnavailable
from gateway.journal_rows import Waiting
from gateway.spans import GatewaySpans
from models import Association
from scp import Arrival
from tests.rig.factories import RECEIVED_AT, collector_of, make_instance, make_report, memory_journal


class Traced:
    """GatewaySpans, and what they export."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.now = 10.0
        self.spans = GatewaySpans(self._provider.get_tracer("test"), lambda: self.now)

    def exported(self) -> dict[str, Sequence[ReadableSpan]]:
        """By name, in the order in which they ended."""
        named: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            named.setdefault(span.name, []).append(span)
        return dict(named)


@pytest.fixture
def traced() -> Traced:
    return Traced()


async def received(traced: Traced, count: int, status: int = 0, took_s: float = 0.0) -> Association:
    """An association that brought images, and has ended."""
    association = Association(1, "CT1", "127.0.0.1", 5.0)
    traced.spans.association(association)
    for n in range(count):
        kept: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        traced.spans.image(replace(make_instance(str(n)), association=association, length=7), kept)
        traced.now += took_s
        kept.set_result(status)
        await asyncio.sleep(0)  # lets the future's callbacks run
    association.released_at = traced.now
    traced.spans.association(association)
    return association


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return int(context.trace_id)


async def test_an_association_is_a_trace_with_a_span_for_each_series(traced: Traced) -> None:
    await received(traced, 3)
    traced.spans.report(make_report("0", "1", "2"))
    exported = traced.exported()
    (association,), (receive,) = exported["association"], exported["receive"]
    assert id_of(receive) == id_of(association)
    assert receive.attributes == {
        "dicom.series_instance_uid": make_instance("0").series_instance_uid,
        "images": 3,
        "bytes": 21,
    }
    assert "C-STORE" not in exported


@pytest.mark.parametrize(("status", "took_s"), [(0xA700, 0.0), (0x0000, 0.2)], ids=["refused", "slow"])
async def test_an_image_that_is_refused_or_slow_has_a_span_of_its_own(
    traced: Traced, status: int, took_s: float
) -> None:
    await received(traced, 2, status, took_s)
    exported = traced.exported()
    assert len(exported["C-STORE"]) == 2
    image = exported["C-STORE"][0]
    assert image.attributes == {
        "dicom.sop_instance_uid": make_instance("0").sop_instance_uid,
        "dicom.status": f"0x{status:04X}",
    }
    assert image.start_time is not None
    assert image.end_time is not None
    assert image.end_time - image.start_time >= took_s * 1e9
    assert id_of(image) == id_of(exported["association"][0])


async def test_a_revision_is_a_trace_from_its_first_image_to_the_row(traced: Traced) -> None:
    await received(traced, 3)
    report = make_report("0", "1", "2").model_copy(update={"LastReceivedAt": RECEIVED_AT + timedelta(seconds=1)})
    traceparent = traced.spans.report(report)
    headers: dict[str, str] = {}
    with traced.spans.post(traceparent, headers):
        pass
    with traced.spans.stored(headers):
        pass
    exported = traced.exported()
    (series,) = exported["series"]
    client, server = sorted(exported["POST /series"], key=lambda span: span.kind.name)
    (store,) = exported["store"]
    assert {id_of(span) for span in (client, server, store)} == {id_of(series)}
    assert named(traceparent) == {"trace_id": f"{id_of(series):032x}"}
    parents = [span.parent and span.parent.span_id for span in (client, server, store)]
    assert parents == [span.get_span_context().span_id for span in (series, client, server)]  # type: ignore[union-attr]
    assert {link.context.span_id for link in series.links} == {
        span.get_span_context().span_id  # type: ignore[union-attr]
        for span in exported["receive"]
    }
    assert series.start_time == int(RECEIVED_AT.timestamp() * 1e9)


async def test_the_next_revision_links_to_its_own_images_only(traced: Traced) -> None:
    await received(traced, 3)
    traced.spans.report(make_report("0"))
    await received(traced, 1)
    await received(traced, 1)
    traced.spans.report(make_report("1"))
    first, second = traced.exported()["series"]
    assert (len(first.links), len(second.links)) == (1, 2)
    assert id_of(first) != id_of(second)


async def test_series_that_are_never_reported_are_forgotten(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.spans.MAX_SERIES", 2)
    association = Association(1, "CT1", "127.0.0.1", 5.0)
    traced.spans.association(association)
    for n in range(5):
        kept: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        traced.spans.image(replace(make_instance("1", series=f"1.2.{n}"), association=association), kept)
    assert len(traced.spans._receives) == 2
    assert len(traced.exported()["receive"]) == 3


async def test_what_is_not_sampled_is_not_remembered() -> None:
    traced = Traced(ALWAYS_OFF)
    await received(traced, 3)
    assert traced.spans._receives == {}
    assert traced.exported() == {}


async def test_an_exceptions_text_is_in_no_span(traced: Traced) -> None:
    with pytest.raises(ValueError, match="Marked"), traced.spans.stored({}):
        raise ValueError("Marked^Name")
    for spans in traced.exported().values():
        for span in spans:
            assert "Marked" not in span.to_json()


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-0", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_header_that_is_no_trace_begins_a_new_one(traced: Traced, header: str) -> None:
    with traced.spans.stored({"traceparent": header}):
        pass
    (server,) = traced.exported()["POST /series"]
    assert server.parent is None


async def test_without_an_endpoint_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    async with open_spans("test", Spans) as spans:
        assert spans is None


@pytest.mark.virtual_time
async def test_a_report_that_the_journal_cannot_take_yet_has_one_trace(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory_journal() as journal:
        close, failures = journal.file_reports, [JournalUnavailable("disk full")] * 3

        async def fail_first(*arguments: Any) -> list[Waiting]:
            if failures:
                raise failures.pop()
            return await close(*arguments)

        monkeypatch.setattr(journal, "file_reports", fail_first)
        http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(lambda _: httpx.Response(503)))
        dispatcher = SeriesDispatcher(http, journal, concurrency=1, retry_max_s=1.0)
        settings = load(GatewaySettings, {"id": "test"})
        gateway = Gateway(settings, journal, collector_of(Fixed(1.0)), dispatcher, traced.spans)
        collecting = asyncio.create_task(gateway.collect())
        association = Association(1, "CT1", "127.0.0.1", 5.0)
        traced.spans.association(association)
        kept: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        instance = replace(make_instance(), association=association)
        traced.spans.image(instance, kept)
        await gateway.inbox.put(Arrival(instance, kept))
        await asyncio.sleep(10)
        await gateway.inbox.put(CLOSED)
        await collecting
        (waiting,) = journal.waiting()
    (series,) = traced.exported()["series"]
    assert len(series.links) == 1
    assert named(waiting.traceparent) == {"trace_id": f"{id_of(series):032x}"}


async def test_a_collector_that_hangs_holds_up_the_end_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("common.tracing.SHUTDOWN_S", 0.2)
        loop = asyncio.get_running_loop()
        async with open_spans("test", partial(GatewaySpans, monotonic=loop.time)) as spans:
            assert spans is not None
            spans.report(make_report("1"))
            began = loop.time()
        assert loop.time() - began < 5


async def test_a_wrong_variable_of_opentelemetry_stops_the_start_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0")
    with pytest.raises(CannotTrace, match="OTEL_"):
        async with open_spans("test", Spans):
            pass
