"""`make scale`: two gateways, two servers, HAProxy: killed and cut off while images come; then how much they store.

The tests compare what senders were told, and what followers of the changes were told, with the rows: an image
acknowledged and not in its row is lost; a row, an instance or a change number too many is doubled. The curve posts
reports as gateways do, and says how many a second are stored and whose CPU that takes. Figures go into docs/scale.md.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench import noticing, partitions
from bench.curve import GATEWAYS, INSTANCES, Cell, Curve, curve
from bench.judging import Trial
from bench.kills import IMAGES, broken_roots, kill_test
from bench.rig.haproxy import HAPROXY, HAPROXY_MISSING
from bench.rig.postgres import missing, postgresql
from bench.rig.processes import ROOT
from bench.rig.progress import bar

DOCUMENT = ROOT / "docs" / "scale.md"
PARTITIONS = 36
PARTS = ("kills", "partitions", "noticing", "curve")


@dataclass
class Run:
    """What is asked for, and what came of it."""

    console: Console
    options: argparse.Namespace
    lost: int = 0
    doubled: int = 0
    problems: int = 0

    def wanted(self, part: str) -> bool:
        return self.options.only in (None, part)

    def count(self, *found: Trial | Curve) -> None:
        self.lost += sum(one.lost for one in found)
        self.doubled += sum(one.doubled for one in found)
        self.problems += sum(len(one.problems) for one in found if isinstance(one, Trial))


def main() -> int:
    """Run all parts; exit code 0 if nothing was lost or doubled, and nothing else was wrong."""
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--trials", type=int, default=3, help="of the kill test")
    parser.add_argument("--images", type=int, default=IMAGES, help="of the series that is split, in the kill test")
    parser.add_argument("--partitions", type=int, default=PARTITIONS, help="at least 10")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=PARTS, help="writes no document")
    parser.add_argument(
        "--break-it",
        choices=["gateway", "union", "follower"],
        help="answer before the commit; add counts up; forget what was told: must show losses or doubles",
    )
    run = Run(Console(width=160), parser.parse_args())
    if problem := missing() or (None if HAPROXY else HAPROXY_MISSING):
        run.console.print(f"scale: {problem}")
        return 1
    run.console.print(f"seed {run.options.seed}; {_versions()}")
    figures = [*_kills(run)]
    cut_off = [*_cut_off(run)]
    figures += _curve(run)
    if run.options.only is None and run.options.break_it is None:
        write_document("figures", [*figures, f"{_versions()}; seed {run.options.seed}."])
        if cut_off:
            write_document("cut off", [*cut_off, f"Seed {run.options.seed}."])
    run.console.print(f"scale: lost={run.lost} doubled={run.doubled}")
    return 1 if run.lost or run.doubled or run.problems else 0


def _kills(run: Run) -> Iterator[str]:
    if not run.wanted("kills"):
        return
    options, trials = run.options, list[Trial]()
    with postgresql() as postgres, bar(run.console, "kill tests", options.trials) as tried:
        for n in range(options.trials):
            trials.append(kill_test(postgres, options.images, f"{options.seed} {n}", options.break_it))
            _print_problems(run.console, f"trial {n + 1}", trials[-1])
            tried()
    run.count(*trials)
    if trials:
        yield _print(run.console, _text(trials_table(trials)))


def _cut_off(run: Run) -> Iterator[str]:
    """Partitions, and how long each side takes to notice one; both named and left out where hosts cannot be made."""
    if not (run.wanted("partitions") or run.wanted("noticing")):
        return
    if problem := partitions.missing():
        run.console.print(f"partitions and the time to notice them are left out: {problem}")
        return
    options = run.options
    if run.wanted("partitions"):
        with (
            bar(run.console, "partitions", options.partitions) as ended,
            tempfile.TemporaryDirectory(prefix="scale-") as folder,
        ):
            Path(folder).chmod(0o755)
            roots = broken_roots(Path(folder), options.break_it)
            forgets = options.break_it == "follower"
            cut = partitions.partition_test(options.partitions, f"{options.seed}", ended, roots, forgets=forgets)
        _print_problems(run.console, "partitions", cut)
        run.count(cut)
        yield from (_print(run.console, _text(table)) for table in partitions.tables(cut))
    if run.wanted("noticing") and options.break_it is None:
        sides = noticing.noticing()
        run.problems += sum(side.late for side in sides)
        yield _print(run.console, _text(noticing.table(sides)))


def _curve(run: Run) -> Iterator[str]:
    if not run.wanted("curve"):
        return
    with (
        postgresql() as postgres,
        bar(run.console, "numbers of servers and gateways", 3 * len(GATEWAYS)) as measured,
    ):
        found = curve(postgres, measured)
    run.count(found)
    yield from (_print(run.console, text) for text in (_text(curve_table(found.cells)), *found.sizes))


def _versions() -> str:
    version = subprocess.run([str(HAPROXY), "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    return f"{os.cpu_count()} cores, shared by everything; HAProxy {version}"


def _print_problems(console: Console, what: str, trial: Trial) -> None:
    for problem in trial.problems[:10]:
        console.print(f"{what}: {problem}", markup=False, highlight=False)


def trials_table(trials: Sequence[Trial]) -> Table:
    columns = ("cut_short", "kills", "redispatched", "repeated", "broken", "changes")
    titles = ("rounds cut short", "kills", "redispatched", "posts repeated", "stream broken off", "changes")
    table = Table("trial", "acknowledged", *titles, "studies", "stored", "lost", "doubled", "took", box=MARKDOWN)
    for n, trial in enumerate(trials, 1):
        numbers = [getattr(trial, name) for name in ("acknowledged", *columns, "studies", "stored", "lost", "doubled")]
        table.add_row(str(n), *map(str, numbers), f"{trial.took_s:.0f} s")
    return table


def curve_table(cells: Sequence[Cell]) -> Table:
    who = ("servers", "PostgreSQL", "HAProxy", "load")
    titles = ("CPU ms a series: servers", *who[1:], "cores busy with it", "with others")
    table = Table("database", "servers", "gateways", "series/s", "instances/s", *titles, box=MARKDOWN)
    for cell in cells:
        spent = [f"{cell.cpu_ms[name]:.2f}" if name in cell.cpu_ms else "" for name in who]
        ours, all_ms = sum(cell.cpu_ms.get(name, 0.0) for name in who), cell.cpu_ms["machine"]
        busy = [f"{cell.series_per_s * ms / 1000:.1f}" for ms in (ours, max(0.0, all_ms - ours))]
        rates = f"{cell.series_per_s:.0f}", f"{cell.series_per_s * INSTANCES:.0f}"
        table.add_row(cell.database, str(cell.servers), str(cell.gateways), *rates, *spent, *busy)
    return table


def _text(table: Table) -> str:
    console = Console(width=200, file=StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get().strip()


def _print(console: Console, text: str) -> str:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return text


def write_document(what: str, parts: Sequence[str]) -> None:
    """Put something between the document's marks of that name."""
    before, rest = DOCUMENT.read_text().split(f"<!-- {what} -->")
    _, after = rest.split(f"<!-- end of {what} -->")
    text = "\n\n".join(parts)
    DOCUMENT.write_text(f"{before}<!-- {what} -->\n\n{text}\n\n<!-- end of {what} -->{after}")


if __name__ == "__main__":
    sys.exit(main())
