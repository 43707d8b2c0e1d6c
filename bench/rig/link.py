"""A long link: a TCP proxy on loopback that forwards every byte half a round trip later, in both directions.

It has the round trips of distance, not its bandwidth or losses. What is under way is bounded: PIECES each way.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bench.rig.proxy import served

PIECE = 65536  # bytes that are read at once
PIECES = 256  # under way in one direction of one connection


@contextmanager
def long_link(port: int, round_trip_s: float) -> Iterator[int]:
    """Yields a port that leads to another one; connecting takes a round trip, as TCP's handshake does."""

    async def serve(near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip_s)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_carry(near_reader, far_writer, round_trip_s / 2))
                    both.create_task(_carry(far_reader, near_writer, round_trip_s / 2))
            except* OSError:  # one side is gone: so is the other
                pass
            finally:
                far_writer.close()

    with served(serve) as near_port:
        yield near_port


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Forwards one direction until its end, which it forwards, too."""
    now = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)

    async def deliver() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - now())
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as delivering:
        delivering.create_task(deliver())
        while data := await reader.read(PIECE):
            await under_way.put((now() + delay_s, data))
        await under_way.put((now() + delay_s, b""))
