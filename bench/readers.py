"""Reports a second while so many read /changes/stream: `python -m bench.readers`.

Reports of new series are posted one after the other to a real server on SQLite; each reader is a connection of its
own, and has to be told every change before the next cell begins. The readers' own CPU stands beside the server's.
"""

import argparse
import asyncio
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from bench.large import report_of
from bench.rig.processes import server

READERS = (50, 200, 1000)
REPORTS = 300


async def read(host: str, port: int, since: int, last: asyncio.Future[int]) -> int:
    """Read a stream until the number that `last` will say; how many changes came."""
    reader, writer = await asyncio.open_connection(host, port, limit=2**20)
    writer.write(f"GET /changes/stream?since={since} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    came, seen, rest = 0, since, b""
    while not (last.done() and seen >= last.result()):
        if not (read := await reader.read(2**16)):
            break
        chunk = rest + read
        numbers = re.findall(rb"^id: (\d+)\r?\n", chunk, re.MULTILINE)
        rest = chunk[chunk.rfind(b"\n") + 1 :]
        came += len(numbers)
        seen = int(numbers[-1]) if numbers else seen
    writer.close()
    return came


async def measure(url: str, process: psutil.Process, readers: int, since: int) -> tuple[float, float, float, int]:
    """Reports a second, the server's CPU ms a report, the readers' CPU s, and the last change."""
    target, loop = httpx.URL(url), asyncio.get_running_loop()
    last: asyncio.Future[int] = loop.create_future()
    reading = [asyncio.create_task(read(target.host, target.port or 80, since, last)) for _ in range(readers)]
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as http:
        await asyncio.sleep(2)  # until all are connected
        cpu, own, began = sum(process.cpu_times()[:2]), time.process_time(), time.perf_counter()
        for n in range(REPORTS):
            content = report_of(str(since + n), 1).model_dump_json()
            answer = await http.post("series", content=content, headers={"Content-Type": "application/json"})
            answer.raise_for_status()
        took_s = time.perf_counter() - began
        last.set_result(since + REPORTS)
        came = await asyncio.gather(*reading)
    if any(count != REPORTS for count in came):
        raise RuntimeError(f"{readers} readers were told {min(came)} to {max(came)} of {REPORTS} changes")
    used = sum(process.cpu_times()[:2]) - cpu
    return REPORTS / took_s, 1000 * used / REPORTS, time.process_time() - own, since + REPORTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readers", description=__doc__)
    parser.add_argument("--readers", type=int, nargs="*", default=READERS)
    readers = parser.parse_args().readers
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each connection, at both ends
    print(
        "| readers | reports a second | of those without | server's CPU a report, ms | CPU of poster and readers, s |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as (process, url):
        since, without = 0, 0.0
        for count in (0, 0, *readers):  # the first one warms up
            rate, cpu_ms, own_s, since = asyncio.run(measure(url, psutil.Process(process.popen.pid), count, since))
            without = without if count else rate
            if since > REPORTS:
                print(f"| {count} | {rate:.0f} | {rate / without:.2f} | {cpu_ms:.1f} | {own_s:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
