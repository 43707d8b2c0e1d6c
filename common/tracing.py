"""Traces by OpenTelemetry, from the association to the row; none, and at no cost, where no OTLP endpoint is set.

A trace of its own has each association, with a span for each series that it brings images of, and one for each image
that is refused or waits long for its answer. A trace of its own has each revision of a series: from its first image
over its report and every post to the server's transaction, with links to the spans that received its images.
OpenTelemetry's own variables hold (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, …). Never patient data.
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

from common.errors import GatewayError
from common.threads import in_thread

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SHUTDOWN_S = 5.0
W3C = TraceContextTextMapPropagator()

S = TypeVar("S", bound="Spans")


class CannotTrace(GatewayError):
    """OpenTelemetry's variables are of no use to it. The text says which."""


class Spans:
    """The spans of one process."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def stored(self, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """A report that is taken, in the trace that its headers name, and the transaction that stores it.

        Yields the trace's id, as a field of log events.
        """
        with (
            self.span("POST /series", SpanKind.SERVER, carried(headers.get("traceparent"))) as span,
            self.span("store", SpanKind.INTERNAL, None),
        ):
            yield {"trace_id": f"{span.get_span_context().trace_id:032x}"}

    @contextmanager
    def span(self, name: str, kind: SpanKind, context: Context | None) -> Iterator[Span]:
        """A span that does not keep the text of an exception."""
        with self._tracer.start_as_current_span(
            name, context, kind, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span


@asynccontextmanager
async def open_spans(service: str, make: Callable[[Tracer], S]) -> AsyncIterator[S | None]:
    """Spans that are exported; None where no endpoint is set. Raises CannotTrace."""
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
        yield make(provider.get_tracer("series-gateway"))
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):  # what is left is exported, if somebody takes it
                await in_thread(provider.shutdown, "export")


def named(traceparent: str | None) -> dict[str, str]:
    """Its trace's id, as a field of log events."""
    return {"trace_id": traceparent.split("-")[1]} if traceparent else {}


def carried(traceparent: str | None) -> Context:
    """The trace that a W3C traceparent names; a new one without."""
    return W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())
