"""Reports through nginx and HAProxy while the server behind them restarts: `python -m bench.proxies`.

The gateway's dispatcher posts through each proxy; meanwhile the server ends by SIGTERM and by SIGKILL in turn and comes
back. Then the rows are compared with what was reported: an image that is in no row is lost, one revision or change too
many is doubled. A report that was set aside is a dead letter: none may be.
"""

import argparse
import asyncio
import contextlib
import logging
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog

from bench.rig.haproxy import HAPROXY, HAPROXY_MISSING, OF_SERVERS, haproxy_process, listen
from bench.rig.nginx import NGINX, NGINX_MISSING, nginx_process, passed
from bench.rig.peers import free_port
from bench.rig.processes import Process, make_key, running, start_server
from common.outgoing import http_client
from gateway.dispatcher import SeriesDispatcher
from gateway.journal import Bounds, Journal
from models import SeriesReport

REPORTS, RESTARTS = 2000, 4
IMAGES = 3  # of each report
CONCURRENCY = 8  # GATEWAY_DISPATCH_CONCURRENCY
TIMEOUT_S = 600.0
LOOK_S = 0.02  # between two looks how many are delivered
DOWN_MAX_S = 10.0  # how long the server stays away until the proxy has answered a post by itself
PAGE = 1000
ROOT_UID = "1.2.826.0.1.3680043.10.2"

StartProxy = Callable[[Path, int, int], Process]
"""In a folder, on a port, in front of the server's port."""


@dataclass
class Outcome:
    """What became of the reports."""

    answered: int = 0
    """Posts that the proxy answered by itself, since the server was away."""
    dead: int = 0
    lost: int = 0
    doubled: int = 0
    took_s: float = 0.0

    @property
    def is_right(self) -> bool:
        return not (self.dead or self.lost or self.doubled)


def nginx(folder: Path, port: int, server_port: int) -> Process:
    """nginx, which answers 502 by itself while the server is down."""
    return nginx_process(folder, port, passed("/", f"http://127.0.0.1:{server_port}"))


def haproxy(folder: Path, port: int, server_port: int) -> Process:
    """HAProxy as an HTTP proxy, which answers 503 by itself while the server is down."""
    more = f"    mode http\n    option forwardfor\n{OF_SERVERS}"
    return haproxy_process(
        folder, [listen("servers", f"127.0.0.1:{port}", [("one", f"127.0.0.1:{server_port}")], more)]
    )


PROXIES: dict[str, StartProxy] = {"nginx": nginx, "HAProxy": haproxy}


def reports(count: int) -> list[SeriesReport]:
    """Make reports, each of a series of its own."""
    return [
        SeriesReport(
            SeriesInstanceUID=f"{ROOT_UID}.{n}",
            StudyInstanceUID=ROOT_UID,
            PatientID="P1",
            NumInstances=IMAGES,
            SOPInstanceUIDs=[f"{ROOT_UID}.{n}.{image}" for image in range(IMAGES)],
            Verdict="idle",
        )
        for n in range(count)
    ]


def try_proxy(folder: Path, start: StartProxy, count: int, restarts: int) -> Outcome:
    """Post so many reports through a proxy while the server restarts so often."""
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{folder}/series.db", "SERVER_REQUESTS_PER_S": "1000000"}
    key = make_key(folder, database, "gateway-1", "admin").read_text().strip()
    port, proxy_port = free_port(), free_port()
    runs = [start_server(folder, port, **database)[0]]

    def restart(number: int, met: threading.Event) -> None:
        if number % 2:
            runs[-1].stop()
        else:
            runs[-1].kill()
        met.clear()
        met.wait(DOWN_MAX_S)
        runs.append(start_server(folder, port, **database)[0])

    try:
        with running(start(folder, proxy_port, port)):
            _until_it_listens(proxy_port)
            return asyncio.run(_post(folder, f"http://127.0.0.1:{proxy_port}", key, count, restarts, restart))
    finally:
        runs[-1].stop()


def _until_it_listens(port: int) -> None:
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(LOOK_S)


async def _post(  # noqa: PLR0913, PLR0917 - what a trial is made of
    folder: Path, url: str, key: str, count: int, restarts: int, restart: Callable[[int, threading.Event], None]
) -> Outcome:
    made, outcome, met = reports(count), Outcome(), threading.Event()

    async def look(answer: httpx.Response) -> None:
        if answer.status_code >= 500:
            outcome.answered += 1
            met.set()

    client = http_client(
        base_url=url,
        timeout=10.0,
        auth=lambda request: _with_key(request, key),
        event_hooks={"response": [look]},
    )
    async with client as http, Journal.open(folder / "journal.db", Bounds(10**9, 2**40, 0)) as journal:
        posting = SeriesDispatcher(http, journal, concurrency=CONCURRENCY, retry_max_s=1.0)
        task = asyncio.create_task(posting.run())
        began = time.perf_counter()
        for report in made:
            (waiting,) = await journal.file_reports([report], {}, [None], {})
            posting.submit(waiting)
        for number in range(restarts):
            while posting.undelivered > count * (restarts - number) / (restarts + 1):
                await posting.drain(LOOK_S)
            await asyncio.to_thread(restart, number, met)
        await posting.drain(TIMEOUT_S)
        outcome.took_s = time.perf_counter() - began
        outcome.dead = len(await journal.last_dead(count))
        task.cancel()
        await _judge(http, made, outcome)
    return outcome


async def _judge(http: httpx.AsyncClient, made: Sequence[SeriesReport], outcome: Outcome) -> None:
    """Rows and changes, as a reader behind the proxy sees them."""
    rows: dict[str, dict[str, Any]] = {}
    after, since, told = None, 0, 0
    while page := (await _get(http, "series", limit=PAGE, **({"after": after} if after else {})))["series"]:
        rows |= {row["SeriesInstanceUID"]: row for row in page}
        after = page[-1]["SeriesInstanceUID"]
    while changes := (await _get(http, "changes", limit=PAGE, since=since))["changes"]:
        told, since = told + len(changes), changes[-1]["Number"]
    for report in made:
        row = rows.pop(report.SeriesInstanceUID, {"NumInstances": 0, "Revision": 1})
        outcome.lost += max(0, IMAGES - row["NumInstances"])
        outcome.doubled += max(0, row["NumInstances"] - IMAGES) + row["Revision"] - 1
    outcome.doubled += len(rows) + max(0, told - len(made))


def _with_key(request: httpx.Request, key: str) -> httpx.Request:
    request.headers["Authorization"] = f"Bearer {key}"
    return request


async def _get(http: httpx.AsyncClient, path: str, **query: object) -> dict[str, list[dict[str, Any]]]:
    answer = await http.get(path, params={name: str(value) for name, value in query.items()})
    found: dict[str, list[dict[str, Any]]] = answer.raise_for_status().json()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.proxies", description=__doc__)
    parser.add_argument("--reports", type=int, default=REPORTS)
    parser.add_argument("--restarts", type=int, default=RESTARTS)
    options = parser.parse_args()
    for missing in (NGINX_MISSING if NGINX is None else "", HAPROXY_MISSING if HAPROXY is None else ""):
        if missing:
            print(missing, file=sys.stderr)
            return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print("| proxy | reports | restarts of the server | answers of the proxy itself | s | dead letters | |")
    print("|---|---|---|---|---|---|---|")
    right = True
    for name, start in PROXIES.items():
        with tempfile.TemporaryDirectory() as folder:
            outcome = try_proxy(Path(folder), start, options.reports, options.restarts)
        right &= outcome.is_right
        tried = f"{name} | {options.reports} | {options.restarts} | {outcome.answered} | {outcome.took_s:.1f}"
        print(
            f"| {tried} | {outcome.dead} | lost={outcome.lost} doubled={outcome.doubled} |",
            flush=True,
        )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
