"""Disk: what an instance and a series take in the server's database and in a gateway's journal. `python -m bench.size`.

Series as a gateway reports them are stored, 100 instances each and then 10, so that what a series takes by itself and
what each of its instances adds can be told apart. Indexes, timeline and changes are included.
"""

import asyncio
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import asyncpg
from rich.console import Console
from sqlalchemy.engine import make_url

from bench.curve import SERIES, example, finished_report, journal_size
from bench.rig.postgres import missing, new_database, postgresql
from common.settings import ServerSettings
from db import Database

STORED = 1000  # series of each size
MANY, FEW = 100, 10  # instances of a series


def main() -> int:
    """Measure and print; exit code 1 where PostgreSQL is missing."""
    console = Console(width=160)
    with tempfile.TemporaryDirectory(prefix="series-gateway-") as folder:
        asyncio.run(measure(console, "SQLite", f"sqlite+aiosqlite:///{folder}/series.db"))
        console.print(asyncio.run(journal_size(Path(folder) / "journal.db")))
    if problem := missing():
        console.print(f"size: {problem}")
        return 1
    with postgresql() as there, new_database(there) as url:
        asyncio.run(measure(console, "PostgreSQL", url))
    return 0


async def measure(console: Console, name: str, url: str) -> None:
    """Bytes of a series and of an instance, by two sizes of series."""
    sizes = [await size(url)]
    for instances in (MANY, FEW):
        await fill(url, instances)
        sizes.append(await size(url))
    many, few = (sizes[1] - sizes[0]) / STORED, (sizes[2] - sizes[1]) / STORED
    instance = (many - few) / (MANY - FEW)
    console.print(
        f"{name}: {instance:.0f} bytes an instance and {(few - FEW * instance) / 1024:.1f} KiB a series besides; "
        f"a series of {MANY} takes {many / 1024:.1f} KiB; {many * 10**4 * 365 / 2**30:.0f} GiB a year at 10,000 a day."
    )


async def fill(url: str, instances: int) -> None:
    images = example()[:instances]
    async with Database.open(ServerSettings(database_url=url)) as database:
        for n in range(STORED):
            uid = f"{SERIES[:-23]}{instances:04d}{n:019d}"
            some = [replace(i, series_instance_uid=uid, sop_instance_uid=f"{uid}.{m}") for m, i in enumerate(images)]
            await database.store(finished_report(some))
        await database.changes(since=0, limit=1)


async def size(url: str) -> int:
    """Bytes in use, after what is to be tidied up was."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(parsed.database))) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            total, free, page = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (total - free) * page
    connection = await asyncpg.connect(parsed.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        await connection.execute("CHECKPOINT")
        return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(main())
