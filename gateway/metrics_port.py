"""Serve the gateway's metrics to Prometheus (GATEWAY_METRICS_PORT)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import prometheus_client
import structlog

from common import metrics
from common.errors import SeriesGatewayError
from common.settings import GatewaySettings

MAX_SCRAPERS = 10  # most connections at the same time
MAX_REQUEST_BYTES = 2**14
SCRAPE_TIMEOUT_S = 5.0

log = structlog.get_logger()


class CannotServeMetrics(SeriesGatewayError):
    """The port of the metrics cannot be bound."""


@asynccontextmanager
async def serve_metrics(settings: GatewaySettings) -> AsyncIterator[None]:
    """Serve the metrics as long as the context is open, if a port is set. Raises CannotServeMetrics."""
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server = await asyncio.start_server(_Metrics().answer, host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise CannotServeMetrics(
            f"cannot listen on GATEWAY_METRICS_HOST={host} GATEWAY_METRICS_PORT={port}: {error.strerror}. Stop the "
            "program that uses it, or choose another address or port (port 0 takes a free one)."
        ) from error
    log.info("metrics.served", host=host, port=server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()


class _Metrics:
    """Answers one HTTP request on each connection with all metrics. Slow or too many clients are disconnected."""

    def __init__(self) -> None:
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_SCRAPERS:
                async with asyncio.timeout(SCRAPE_TIMEOUT_S):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response())
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client may try again
        finally:
            self._open -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()


def _response() -> bytes:
    body = prometheus_client.generate_latest(metrics.GATEWAY)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {prometheus_client.CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + body
