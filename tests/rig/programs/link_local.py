"""Tells a webhook at a link-local address of a change: first it may not, then it may.

Arguments: the address to listen on, and the name to call it by. Prints for each: may it, why not, how many heard it.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any, cast

from api.webhooks import Teller
from common.outgoing import http_client
from models import Change
from storage.webhooks import new_secret


async def main(address: str, name: str) -> None:
    """Listens, and tells twice."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, address, 0)
    row = {"Url": f"http://{name}:{server.sockets[0].getsockname()[1]}/", "Secret": new_secret(), "OldSecret": None}
    change = Change(
        Number=1,
        At=datetime.now(UTC),
        SeriesInstanceUID="1",
        StudyInstanceUID="1",
        Revision=1,
        NumInstances=1,
        Verdict=None,
    )
    async with server, http_client(timeout=5) as http:
        teller = Teller(cast(Any, None), cast(Any, None), http)
        for may in (False, True):
            problem, _ = await teller._post(row | {"LinkLocal": may}, change)
            print(json.dumps([may, problem, len(received)]))


asyncio.run(main(*sys.argv[1:]))
