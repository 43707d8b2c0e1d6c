"""What storing costs: CPU milliseconds of the server (user and system) a series. `python -m bench.server_cpu`.

Series are posted as gateways do, CONCURRENCY reports at the same time, each with a key, to the real server on SQLite
and on PostgreSQL. With several `--root` (checkouts) their servers take turns: what counts then is the median of the
ratios to the first one, round by round.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.curve import CONCURRENCY, PATIENT, SERIES, STUDY, example, family_s, finished_report, own_s, postmaster_of
from bench.rig.cluster import SERVER
from bench.rig.postgres import missing, new_database, postgresql
from bench.rig.processes import ROOT, make_key, running, start_server
from bench.rig.progress import bar

DATABASES = ("SQLite", "PostgreSQL")
WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True)
class Kind:
    """A way in which series come."""

    images: int = 100
    """Of a series."""
    parts: int = 0
    """Reports without a verdict before the last one, each with as many images more."""
    of_study: int = 1
    """Series of a study."""
    silent: timedelta = timedelta()
    """How long the study has been silent: the server may decide about it at once."""

    def reports(self) -> list[str]:
        """Return the JSON of the reports of one series, in their order."""
        began = datetime.now(UTC) - self.silent
        whole = example(began)[: self.images]
        each = [whole[: self.images * n // (self.parts + 1)] for n in range(1, self.parts + 1)]
        parts = [finished_report(some, began).model_copy(update={"Verdict": None, "Timeline": []}) for some in each]
        return [one.model_dump_json(exclude_none=True) for one in (*parts, finished_report(whole, began))]


KINDS = {
    "100 images": Kind(),
    "20 images": Kind(images=20),
    "100 images, first a part of 50": Kind(parts=1),
    "100 images, five series a study": Kind(of_study=5),
    "100 images, and its study is decided": Kind(silent=timedelta(days=1)),
}


@dataclass
class Server:
    """A server process on a database of its own."""

    root: Path
    database: str
    url: str
    process: psutil.Process
    headers: dict[str, str]
    postmaster: psutil.Process | None
    ms: dict[str, list[float]] = field(default_factory=dict)
    """CPU milliseconds a series, round by round, by kind."""
    postgresql_ms: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, name: str, series: int, numbers: Iterator[int]) -> None:
        """Post so many series of a kind, and note what each has cost."""
        before, postgresql_before = own_s(self.process), self._postgresql_s()
        async with httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=60, trust_env=False) as http:
            todo = iter([next(numbers) for _ in range(series)])
            async with asyncio.TaskGroup() as posting:
                for _ in range(CONCURRENCY):
                    posting.create_task(_post(http, KINDS[name], todo))
        self.ms.setdefault(name, []).append(1000 * (own_s(self.process) - before) / series)
        self.postgresql_ms.setdefault(name, []).append(1000 * (self._postgresql_s() - postgresql_before) / series)

    def _postgresql_s(self) -> float:
        return family_s(self.postmaster) if self.postmaster else 0.0


async def _post(http: httpx.AsyncClient, kind: Kind, numbers: Iterator[int]) -> None:
    """Post series until there are no more."""
    templates = kind.reports()
    for number in numbers:
        for template in templates:
            report = template.replace(SERIES, f"{SERIES[:-23]}{number:023d}")
            report = report.replace(STUDY, f"{STUDY[:-23]}{number // kind.of_study:023d}")
            report = report.replace(PATIENT, f"P{number // kind.of_study:08d}")
            answer = await http.post("series", content=report, headers={"Content-Type": "application/json"})
        if f'"NumInstances":{kind.images},' not in answer.raise_for_status().text:
            raise RuntimeError(f"a series of {kind.images} images was answered with {answer.text}")


@contextmanager
def serving(root: Path, database: str) -> Iterator[Server]:
    """A server of a checkout on a new database."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="server-cpu-")))
        main_process, url = None, f"sqlite+aiosqlite:///{folder}/series.db"
        if database == "PostgreSQL":
            url = stack.enter_context(new_database(stack.enter_context(postgresql())))
            main_process = asyncio.run(postmaster_of(url))
        environment = SERVER | {"DATABASE_URL": url}
        key = make_key(folder, environment, "gateway", "series:write").read_text().strip()
        process, base = start_server(folder, 0, root, **environment)
        stack.enter_context(running(process))
        headers = {"Authorization": f"Bearer {key}"}
        yield Server(root, database, base, psutil.Process(process.popen.pid), headers, main_process)


def measure(console: Console, servers: Sequence[Server], kinds: Sequence[str], series: int, rounds: int) -> None:
    """Let the servers take turns; what warms them up is not kept."""
    numbers = itertools.count(1_000_000)
    with bar(console, "server's CPU", (WARM_UP + rounds) * len(servers) * len(kinds)) as measured:
        for round_ in range(WARM_UP + rounds):
            for name in kinds:
                for server in servers if round_ % 2 else reversed(servers):
                    asyncio.run(server.measure(name, series, numbers))
                    measured()
    for server in servers:
        for ms in (*server.ms.values(), *server.postgresql_ms.values()):
            del ms[:WARM_UP]


def table(servers: Sequence[Server], kinds: Sequence[str]) -> Table:
    """Return the medians over rounds, and the ratio to the first server on the same database."""
    columns = (
        "database",
        "a series has",
        "checkout",
        "server, ms of CPU",
        "from … to",
        "to the first",
        "PostgreSQL, ms",
    )
    found = Table(*columns, box=MARKDOWN)
    for database, name in itertools.product(dict.fromkeys(one.database for one in servers), kinds):
        of_database = [one for one in servers if one.database == database]
        for server in of_database:
            ms, first = server.ms[name], of_database[0].ms[name]
            ratio = statistics.median(one / other for one, other in zip(ms, first, strict=True))
            theirs = f"{statistics.median(server.postgresql_ms[name]):.2f}" if server.postmaster else ""
            spread = f"{min(ms):.2f} … {max(ms):.2f}"
            row = (database, name, server.root.name, f"{statistics.median(ms):.2f}", spread, f"{ratio:.3f}", theirs)
            found.add_row(*row)
    return found


def main() -> int:
    """Measure and print; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.server_cpu", description=__doc__)
    parser.add_argument(
        "--root", type=Path, action="append", help="a checkout whose server is measured; several differ"
    )
    parser.add_argument("--on", choices=DATABASES, action="append")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--series", type=int, default=100, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    databases = [one for one in options.on or DATABASES if one != "PostgreSQL" or not missing()]
    kinds = options.kind or list(KINDS)
    with ExitStack() as stack:
        roots = [root.resolve() for root in options.root or [ROOT]]
        both = itertools.product(databases, roots)
        servers = [stack.enter_context(serving(root, database)) for database, root in both]
        measure(console, servers, kinds, options.series, options.rounds)
    console.print(table(servers, kinds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
