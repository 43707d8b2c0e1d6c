"""Traces by OpenTelemetry, from the association to the row; none, and at no cost, where no OTLP endpoint is set.

A trace of its own has each association, with a span for each series that it brings images of, and one for each image
that is refused or waits long for its answer. A trace of its own has each revision of a series: from its first image
over its report and every post to the server's transaction, with links to the spans that received its images.
OpenTelemetry's own variables hold (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, …). Never patient data.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from common.errors import GatewayError
from common.threads import in_thread
from models import Association, Instance, SeriesKey, SeriesReport

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MAX_SERIES = 10_000  # whose images are being received
PROCESSING_FAILURE = 0x0110  # PS3.7 §C.5.14
SHUTDOWN_S = 5.0
SLOW_S = 0.1  # an answer that takes longer has a span of its own; a span for every image costs a seventh of all speed
W3C = TraceContextTextMapPropagator()


class CannotTrace(GatewayError):
    """OpenTelemetry's variables are of no use to it. The text says which."""


@dataclass(slots=True)
class _Receive:
    """The images of one series that one association has brought since the last report."""

    span: Span
    images: int = 0
    bytes: int = 0


class Spans:
    """The spans of one process."""

    def __init__(self, tracer: Tracer, monotonic: Callable[[], float]) -> None:
        self._tracer = tracer
        self._monotonic = monotonic
        self._associations: dict[Association, tuple[Span, Context]] = {}
        self._receives: dict[SeriesKey, dict[Association, _Receive]] = {}

    # --- the gateway's ---

    def association(self, association: Association) -> None:
        """An association was established, or has ended."""
        if association.released_at is not None:
            span, _ = self._associations.pop(association)
            span.end()
            return
        attributes: Attributes = {
            "dicom.calling_ae_title": association.calling_ae_title,
            "client.address": association.peer_address,
        }
        span = self._tracer.start_span("association", Context(), SpanKind.SERVER, attributes)
        self._associations[association] = span, set_span_in_context(span)

    def image(self, instance: Instance, kept: "asyncio.Future[int]") -> None:
        """An image has come; `kept` is the status that its sender is answered with."""
        association = instance.association
        known = self._associations.get(association) if association else None
        if association is None or known is None or not known[0].is_recording():
            return
        receive = self._receive(instance.key, association, known[1])
        receive.images += 1
        receive.bytes += instance.length
        kept.add_done_callback(partial(self._answered, instance.sop_instance_uid, known[1], self._monotonic()))

    def _receive(self, key: SeriesKey, association: Association, context: Context) -> _Receive:
        by_association = self._receives.setdefault(key, {})
        receive = by_association.get(association)
        if receive is None:
            attributes: Attributes = {"dicom.series_instance_uid": key.series_instance_uid}
            span = self._tracer.start_span("receive", context, SpanKind.INTERNAL, attributes)
            receive = by_association[association] = _Receive(span)
            if len(self._receives) > MAX_SERIES:  # series none of whose images were kept
                self._end(next(iter(self._receives)))
        return receive

    def _end(self, key: SeriesKey) -> list[Link]:
        receives = self._receives.pop(key, {}).values()
        for receive in receives:
            receive.span.set_attributes({"images": receive.images, "bytes": receive.bytes})
            receive.span.end()
        return [Link(receive.span.get_span_context()) for receive in receives]

    def _answered(self, uid: str, context: Context, came_at: float, kept: "asyncio.Future[int]") -> None:
        if kept.cancelled():  # its association is gone
            return
        took_s = self._monotonic() - came_at
        status = PROCESSING_FAILURE if kept.exception() else kept.result()
        if status or took_s > SLOW_S:
            attributes: Attributes = {"dicom.sop_instance_uid": uid, "dicom.status": f"0x{status:04X}"}
            start_ns = time.time_ns() - int(took_s * 1e9)
            self._tracer.start_span("C-STORE", context, SpanKind.SERVER, attributes, start_time=start_ns).end()

    def report(self, report: SeriesReport) -> str | None:
        """The trace of a revision, up to its report; what carries it on (W3C Trace Context)."""
        links = self._end(report.key)
        attributes: Attributes = {
            "dicom.series_instance_uid": report.SeriesInstanceUID,
            "dicom.study_instance_uid": report.StudyInstanceUID,
            "series.revision": report.Revision,
            "series.instances": report.NumInstances,
            "series.verdict": report.Verdict or "",
            "series.source": report.Source or "",
        }
        first = _ns(report.FirstReceivedAt) if report.FirstReceivedAt else None
        span = self._tracer.start_span("series", Context(), SpanKind.INTERNAL, attributes, links, start_time=first)
        for entry in report.Timeline:
            details = {name: value for name, value in entry.Details.items() if value is not None}
            span.add_event(entry.Event, details, _ns(entry.At))
        span.end()
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span))
        return carrier.get("traceparent")

    @contextmanager
    def post(self, traceparent: str | None, headers: dict[str, str]) -> Iterator[None]:
        """One post of a report; `headers` are given what takes its trace along."""
        with self._span("POST /series", SpanKind.CLIENT, _context(traceparent)):
            W3C.inject(headers)
            yield

    # --- the server's ---

    @contextmanager
    def stored(self, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """A report that is taken, in the trace that its headers name, and the transaction that stores it.

        Yields the trace's id, as a field of log events.
        """
        with (
            self._span("POST /series", SpanKind.SERVER, _context(headers.get("traceparent"))) as span,
            self._span("store", SpanKind.INTERNAL, None),
        ):
            yield {"trace_id": f"{span.get_span_context().trace_id:032x}"}

    @contextmanager
    def _span(self, name: str, kind: SpanKind, context: Context | None) -> Iterator[Span]:
        """A span that does not keep the text of an exception."""
        with self._tracer.start_as_current_span(
            name, context, kind, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span


@asynccontextmanager
async def open_spans(service: str, monotonic: Callable[[], float]) -> AsyncIterator[Spans | None]:
    """Spans that are exported; None where no endpoint is set. `monotonic` tells the time. Raises CannotTrace."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield None
        return
    # Slow to import, and mostly not needed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    name = os.environ.get("OTEL_SERVICE_NAME", service)
    try:
        provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise CannotTrace(f"a variable of OpenTelemetry (OTEL_…) is wrong: {error}. Correct or remove it.") from error
    try:
        yield Spans(provider.get_tracer("series-gateway"), monotonic)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):  # what is left is exported, if somebody takes it
                await in_thread(provider.shutdown, "export")


def named(traceparent: str | None) -> dict[str, str]:
    """Its trace's id, as a field of log events."""
    return {"trace_id": traceparent.split("-")[1]} if traceparent else {}


def _context(traceparent: str | None) -> Context:
    return W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
