"""Server-sent events (HTML Standard §9.2) to readers of any number and pace."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from models import Change

PING_S = 15.0  # between two comments, where there is nothing to tell: proxies close what is silent
PING = b": ping\n\n"
STUCK_S = 20.0  # how long a reader may take nothing of what is sent

log = structlog.get_logger()


class Events(StreamingResponse):
    """Events as they are made; a reader that does not take them is let go, and asks again where it was."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], status_code: int = 200) -> None:
        super().__init__(content, status_code, {"X-Accel-Buffering": "no"})  # nginx would hold them back

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STUCK_S):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            log.warning("stream.dropped", reason=f"for {STUCK_S:g} s its reader did not take what was sent")


def encoded(change: Change) -> bytes:
    """Return one change as an event: `id` is its number."""
    return format_sse_event(data_str=change.model_dump_json(), event="change", id=str(change.Number))


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "Events, until it is closed.",
    }
}
