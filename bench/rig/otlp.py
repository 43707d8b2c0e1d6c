"""An OpenTelemetry collector that only keeps what it is sent (OTLP over HTTP)."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench.rig.http_server import Answer, Request, http_server


class Sink:
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.url = ""

    @property
    def environment(self) -> dict[str, str]:
        """Returns what makes a process export to it, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "200", "NO_PROXY": "127.0.0.1"}

    def spans(self) -> list[Span]:
        """Everything that came."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def take(self, request: Request) -> Answer:
        compressed = request.headers["Content-Encoding"] == "gzip"
        self.bodies.append(gzip.decompress(request.body) if compressed else request.body)
        return Answer(headers={"Content-Type": "application/x-protobuf"})


@contextmanager
def sink() -> Iterator[Sink]:
    """A collector on a free loopback port, stopped at the end."""
    made = Sink()
    with http_server(made.take) as made.url:
        yield made
