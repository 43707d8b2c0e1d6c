"""Make the gateway's spans: of associations, of series, and of a report's way to the server (common/tracing.py)."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Tracer, set_span_in_context
from opentelemetry.util.types import Attributes

from common.tracing import W3C, Spans, carried
from dicom.statuses import PROCESSING_FAILURE
from models import Association, Instance, SeriesKey, SeriesReport

MAX_SERIES = 10_000  # series with an open span of their images
SLOW_S = 0.1  # an image answered later than this gets a span; one for every image would cost a seventh of the speed


@dataclass(slots=True)
class _Receive:
    """The images of one series that one association has brought since the last report."""

    span: Span
    images: int = 0
    bytes: int = 0


class GatewaySpans(Spans):
    """The spans of a gateway."""

    def __init__(self, tracer: Tracer, monotonic: Callable[[], float]) -> None:
        super().__init__(tracer)
        self._monotonic = monotonic
        self._associations: dict[Association, tuple[Span, Context]] = {}
        self._receives: dict[SeriesKey, dict[Association, _Receive]] = {}

    def association(self, association: Association) -> None:
        """Begin the span of an association, or end it."""
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
        """Count an image in its spans. `kept` gets the status that its sender is answered with."""
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
            if len(self._receives) > MAX_SERIES:  # the oldest: none of its images were kept
                self._end(next(iter(self._receives)))
        return receive

    def _end(self, key: SeriesKey) -> list[Link]:
        receives = self._receives.pop(key, {}).values()
        for receive in receives:
            receive.span.set_attributes({"images": receive.images, "bytes": receive.bytes})
            receive.span.end()
        return [Link(receive.span.get_span_context()) for receive in receives]

    def _answered(self, uid: str, context: Context, came_at: float, kept: "asyncio.Future[int]") -> None:
        if kept.cancelled():  # its association has ended
            return
        took_s = self._monotonic() - came_at
        status = PROCESSING_FAILURE if kept.exception() else kept.result()
        if status or took_s > SLOW_S:
            attributes: Attributes = {"dicom.sop_instance_uid": uid, "dicom.status": f"0x{status:04X}"}
            start_ns = time.time_ns() - int(took_s * 1e9)
            self._tracer.start_span("C-STORE", context, SpanKind.SERVER, attributes, start_time=start_ns).end()

    def report(self, report: SeriesReport) -> str | None:
        """Make the trace of a revision up to its report; return its traceparent (W3C Trace Context)."""
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
        """Make a span for one post of a report, and add the trace to its `headers`."""
        with self.span("POST /series", SpanKind.CLIENT, carried(traceparent)):
            W3C.inject(headers)
            yield


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
