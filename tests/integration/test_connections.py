"""The system ends connections whose peer vanishes: their sockets say so. `make scale` shows that it does."""

import asyncio
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from bench.rig.peers import free_port
from bench.rig.postgres import missing_own, postgresql_at
from bench.rig.senders import associate_rq
from common.connections import DEAD_AFTER_S, OF_POSTGRESQL, PROBE_AFTER_S, notice_death
from common.settings import ServerSettings
from db import Database
from storage.engine import DatabaseUnavailable
from tests.rig.associations import listening
from tests.rig.factories import make_report
from tests.rig.serving import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is accepted inherits it on Linux")
OF_OUR_OWN = pytest.mark.skipif(missing_own() is not None, reason="only a PostgreSQL of our own listens on TCP")
WATCHED = (1, PROBE_AFTER_S, 1000 * DEAD_AFTER_S)


def sockets() -> Iterator[socket.socket]:
    """Those that this process has open."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                with socket.socket(fileno=os.dup(int(fd))) as sock:
                    yield sock


def watched(peer: tuple[str, int]) -> list[tuple[int, int, int]]:
    """Keep-alive, seconds until the first probe, and milliseconds until death, of each connection with that peer."""
    found = []
    for sock in sockets():
        with suppress(OSError):  # not connected
            if sock.getpeername() == peer:
                idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                dead = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                found.append((sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), idle, dead))
    return found


async def test_an_association_ends_when_its_sender_vanishes() -> None:
    async with listening() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(associate_rq())
        await reader.readexactly(1)  # it is accepted
        assert watched(writer.get_extra_info("sockname")) == [WATCHED]
        writer.close()


def test_a_request_ends_when_its_client_vanishes(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
        with socket.create_connection((host, port or 0)) as client:
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(1)  # it is accepted
            assert watched(client.getsockname()) == [WATCHED]


@OF_OUR_OWN
async def test_postgresql_and_the_server_end_a_session_when_the_other_vanishes(tmp_path: Path) -> None:
    with postgresql_at(tmp_path / "data", "127.0.0.1", "127.0.0.1/32", port := free_port()) as url:
        settings = ServerSettings(database_url=url.render_as_string(hide_password=False))
        async with Database.open(settings) as database:
            for name, value in OF_POSTGRESQL.items():
                [row] = await database.engine.read(text(f"SELECT current_setting('{name}') AS value"))
                assert row["value"].removesuffix("min").removesuffix("s") in (value, "1"), name
            assert set(watched(("127.0.0.1", port))) == {WATCHED}


class Line:
    """A line to a port that may go deaf: what is answered, and whoever connects, hears nothing more."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.deaf_after: bytes | None = None
        """What the caller says last before it hears no more."""
        self.deaf = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.upstream)
            answering = asyncio.create_task(self._answer(answers, writer))
            while said := await reader.read(2**16):
                self.deaf = self.deaf or (self.deaf_after is not None and self.deaf_after in said)
                upstream.write(said)
            await upstream.drain()
            upstream.close()
            await answering
        writer.close()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await answers.read(2**16):
            if not self.deaf:
                writer.write(said)
        if not self.deaf:
            writer.close()


@OF_OUR_OWN
async def test_a_commit_whose_answer_never_comes_is_given_up_and_done_once(tmp_path: Path) -> None:
    """What lies between acknowledges for PostgreSQL, so only the program's own time-out helps."""
    with postgresql_at(tmp_path / "data", "127.0.0.1", "127.0.0.1/32", port := free_port()) as url:
        line = Line(port)
        async with await asyncio.start_server(line.carry, "127.0.0.1", 0) as server:
            there = url.set(port=server.sockets[0].getsockname()[1]).render_as_string(hide_password=False)
            async with Database.open(ServerSettings(database_url=there, database_timeout_s=1)) as database:
                line.deaf_after = b"COMMIT;"  # BEGIN names an isolation level
                with pytest.raises(DatabaseUnavailable):
                    await database.store(make_report("1", "2"))
                line.deaf_after, line.deaf = None, False
                record, created = await database.store(make_report("1", "2"))
                assert (record.NumInstances, record.Revision, created) == (2, 1, False)
                assert await database.last_change() == 1


def test_a_unix_socket_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        notice_death(sock)
