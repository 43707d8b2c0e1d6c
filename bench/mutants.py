"""`make mutants`: break the code in one place, see whether a fast test fails, and show the breaks that none noticed.

Of each module a sample of mutants (bench/mutations.py) is drawn by a seed, so that a run can be repeated. Each is tried
by the module's own fast tests, in a copy of the tree. Which is killed is one that a test fails with, or ends not.
"""

import argparse
import compileall
import itertools
import multiprocessing
import os
import queue
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.mutations import Mutant, compiles, mutants
from bench.rig.processes import ROOT

AT_ONCE = 2  # mutants that are tried at the same time
SECONDS, TIMES = 60.0, 6  # the tests of a mutant may take so long, and this multiple of their time without a mutant;
CPU_SECONDS, CPU_TIMES = 20.0, 3  # of the processor less, since other programs can take no part of that
MEMORY_BYTES = 4 * 2**30  # address space of the tests, beyond which a mutant that fills it fails
PRELOADED = ["pytest", "hypothesis", "httpx", "fastapi", "numpy", "pydicom", "pynetdicom", "sqlalchemy.ext.asyncio"]
PRELOADED += ["sqlalchemy.dialects.sqlite", "alembic.command", "prometheus_client", "rich.table", "structlog"]
ARGUMENTS = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", "--assert=plain", "--hypothesis-seed=1"]
ARGUMENTS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is preloaded is not rewritten
OUTPUT = "tests.txt"  # of the last run of tests in a copy
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "traces")

TESTS: dict[str, tuple[str, str]] = {
    "gateway/journal.py": ("journal journal_file journal_rows", ""),
    "gateway/journal_file.py": ("journal_file journal", ""),
    "gateway/journal_rows.py": ("journal_rows journal", ""),
    "gateway/collector.py": ("collector verified collect idle reporting", ""),
    "gateway/open_series.py": ("collector verified idle collect reporting", ""),
    "gateway/closed_series.py": ("closed_series collector verified", ""),
    "gateway/reporting.py": ("reporting collector verified collect", ""),
    "gateway/idle.py": ("idle collector", ""),
    "gateway/pacs.py": ("asking", "pacs pacs_raw"),
    "gateway/dispatcher.py": ("dispatcher client", ""),
    "gateway/server_client.py": ("client post_counts dispatcher answers", ""),
    "gateway/heartbeat.py": ("heartbeat orders answers", ""),
    "gateway/orders.py": ("orders heartbeat", ""),
    "client.py": ("collect gateway spans client_sources", "gateway"),
    "scp.py": ("", "scp scp_measures scp_limits"),
    "dicom/upper_layer.py": ("upper_layer associate streams", ""),
    "dicom/command_set.py": ("upper_layer streams", ""),
    "dicom/associate.py": ("associate upper_layer", ""),
    "dicom/query_retrieve.py": ("asking", "pacs pacs_studies pacs_raw"),
    "dicom/header.py": ("header extras models", ""),
    "dicom/walk.py": ("walk header", ""),
    "storage/merge.py": ("merge union", "db declarations"),
    "storage/revisions.py": ("", "db declarations sources purge"),
    "storage/engine.py": ("engine", "db"),
    "storage/connection.py": ("engine", "db"),
    "db.py": ("", "db declarations acting overview"),
    "api/access.py": ("scopes", "guard access acting"),
}
"""By module, the names of the fast test files that can tell: of units, and of what is integrated; the surest first."""


class NoBaseline(Exception):
    """The tests of a module fail without a mutant, so they can tell nothing about one."""


class Tried(NamedTuple):
    """A module after its run."""

    module: str
    tried: int
    lived: list[str]
    """The surviving mutants, as they are shown."""


# --- the tests of one mutant --------------------------------------------------------------------------------------


def _test(folder: Path, files: Sequence[str], cpu_s: float) -> None:
    """Run test files of a copied tree in this process, and end it. Nothing of the tree itself is used."""
    os.setsid()  # so that what the tests start can be ended with them
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
    sys.dont_write_bytecode = True
    with open(OUTPUT, "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import pytest  # noqa: PLC0415 - here it is loaded already

    os._exit(pytest.main([*ARGUMENTS, *files]))


class Trials:
    """Tries mutants in copies of the tree, two at a time, in forks of a process that has loaded the libraries."""

    def __init__(self, root: Path, folder: Path, preloaded: Sequence[str] = PRELOADED) -> None:
        self._root = root
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preloaded])
        first = shutil.copytree(root, folder / "0", ignore=NOT_COPIED)
        compileall.compile_dir(first, quiet=2)
        self.copies = [first, *(shutil.copytree(first, folder / str(number)) for number in range(1, AT_ONCE))]

    def run(self, module: str, files: Sequence[str], count: int, seed: int) -> Tried:
        """Try up to `count` mutants of a module. Raises NoBaseline if its tests fail without one."""
        source = (self._root / module).read_text()
        chosen = sample(module, source, count, seed)
        began = time.monotonic()
        if not self.passes(self.copies[0], files, 10 * SECONDS, 10 * SECONDS):
            said = (self.copies[0] / OUTPUT).read_text()[-2000:]
            raise NoBaseline(f"{module}: its tests fail without a mutant:\n{said}")
        took_s = time.monotonic() - began
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for copy in self.copies:
            free.put(copy)

        def lives(mutant: Mutant) -> bool:
            copy = free.get()
            try:
                for compiled in (copy / module).parent.glob(f"__pycache__/{Path(module).stem}.*"):
                    compiled.unlink()  # it may look newer than the mutant
                (copy / module).write_text(mutant.of(source))
                return self.passes(copy, files, SECONDS + TIMES * took_s, CPU_SECONDS + CPU_TIMES * took_s)
            finally:
                (copy / module).write_text(source)
                free.put(copy)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                outcomes = list(threads.map(lives, chosen))
            except BaseException:  # Ctrl-C: nothing more is begun, and what runs is ended
                threads.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.kill()
                raise
        return Tried(module, len(chosen), [m.shown(source) for m, lived in zip(chosen, outcomes, strict=True) if lived])

    def passes(self, copy: Path, files: Sequence[str], clock_s: float, cpu_s: float) -> bool:
        """Run test files in a copy, in a process of their own; return whether all passed in time."""
        process = self._context.Process(target=_test, args=(copy, files, cpu_s))
        process.start()
        process.join(clock_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with all that the tests have started
        process.join()
        return process.exitcode == 0


# --- the run ------------------------------------------------------------------------------------------------------


def sample(module: str, source: str, count: int, seed: int) -> list[Mutant]:
    """Return up to `count` of a module's mutants, the same for the same seed."""
    found = mutants(source)
    random.Random(f"{seed} {module}").shuffle(found)
    return [*itertools.islice((mutant for mutant in found if compiles(mutant.of(source))), count)]


def files_for(module: str) -> list[str]:
    """Return the paths of a module's fast tests."""
    units, integration = TESTS[module]
    return [f"tests/unit/test_{name}.py" for name in units.split()] + [
        f"tests/integration/test_{name}.py" for name in integration.split()
    ]


def main() -> int:
    """Try mutants, and print those that lived and a table of all; return 1 if tests fail without a mutant."""
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=5, metavar="N", help="mutants of each module")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="S", help="draws the same mutants")
    parser.add_argument(
        "--modules", default=",".join(TESTS), metavar="A,B", help="modules, such as idle or gateway/idle.py"
    )
    options = parser.parse_args()
    asked = options.modules.split(",")
    modules = [module for module in TESTS if {module, Path(module).stem} & {*asked}]
    if missing := {*asked} - {name for module in TESTS for name in (module, Path(module).stem)}:
        parser.error(f"no module is called {', '.join(sorted(missing))}: give some of {', '.join(TESTS)}")
    console = Console(width=160, highlight=False, markup=False)
    console.print(f"seed {options.seed}: {options.sample} mutants of each of {len(modules)} modules")
    results: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        trials = Trials(ROOT, Path(folder))
        for module in modules:
            try:
                results.append(trials.run(module, files_for(module), options.sample, options.seed))
            except NoBaseline as error:
                console.print(str(error))
                continue
            for mutant in results[-1].lived:
                console.print(f"{module}:{mutant}", soft_wrap=True)
    console.print(_table(results))
    tried, lived = sum(one.tried for one in results), sum(len(one.lived) for one in results)
    console.print(f"tried={tried} killed={tried - lived} survived={lived}")
    return int(len(results) < len(modules))


def _table(results: Sequence[Tried]) -> Table:
    table = Table("module", "tried", "killed", "survived", "score")
    for module, tried, lived in results:
        killed = tried - len(lived)
        score = f"{100 * killed / tried:.0f} %" if tried else "-"
        table.add_row(module, str(tried), str(killed), str(len(lived)), score)
    return table


if __name__ == "__main__":
    sys.exit(main())
