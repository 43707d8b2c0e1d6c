"""OpenTelemetry traces, from the association to the row. Without an OTLP endpoint there are none, and no cost.

There are two kinds of traces:

- one for each association: a span for each series of which it brings images, and one for each image that is refused or
  waits long for its answer;
- one for each revision of a series: from its first image over its report and every post to the server's transaction,
  linked to the spans that received its images.

OpenTelemetry's own environment variables configure it (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, …). Spans hold
no patient data.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.errors import SeriesGatewayError
from common.threads import in_thread

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SHUTDOWN_S = 5.0  # longest wait, at the end, for the last spans to be exported
W3C = TraceContextTextMapPropagator()

S = TypeVar("S", bound="Spans")


class CannotTrace(SeriesGatewayError):
    """OpenTelemetry rejects its environment variables. The text says which."""


class Spans:
    """The spans of one process."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def stored(self, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Make spans for a received report and for the transaction that stores it, in the trace its headers name.

        Yield the trace's id as a field for log events.
        """
        with (
            self.span("POST /series", SpanKind.SERVER, carried(headers.get("traceparent"))) as span,
            self.span("store", SpanKind.INTERNAL, None),
        ):
            yield {"trace_id": f"{span.get_span_context().trace_id:032x}"}

    @contextmanager
    def span(self, name: str, kind: SpanKind, context: Context | None) -> Iterator[Span]:
        """Make a span that does not record the text of an exception."""
        with self._tracer.start_as_current_span(
            name, context, kind, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span


@asynccontextmanager
async def open_spans(service: str, make: Callable[[Tracer], S]) -> AsyncIterator[S | None]:
    """Yield spans that are exported, or None if no endpoint is set. Raises CannotTrace."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield None
        return
    # These are slow to import, and usually not needed.
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
        yield make(provider.get_tracer("series-gateway"))
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):  # exports the remaining spans, if the endpoint answers
                await in_thread(provider.shutdown, "export")


def named(traceparent: str | None) -> dict[str, str]:
    """Return the trace id of a W3C traceparent as a field for log events; nothing without a traceparent."""
    return {"trace_id": traceparent.split("-")[1]} if traceparent else {}


def carried(traceparent: str | None) -> Context:
    """Return the context of the trace that a W3C traceparent names; without one, that of a new trace."""
    return W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())
