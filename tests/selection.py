"""Which tests run, in what order and on how many processes; what is said before them and as they fail.

Real peers: tests that need one which is missing are skipped, and it is named at the start, unless REQUIRE_REAL_PEERS=1;
then they fail.
"""

import os
import shutil
from pathlib import Path

import pytest

MISSING: dict[str, str | None] = {}  # by peer, what to install; None where it is here
NOT_FROM_DEBIAN = {"docker", "kubectl", "tmpfs"}  # no package alone brings these: REQUIRE_REAL_PEERS asks for none
ROOTS = {"namespaces"}  # nor for these, of who is not root
KINDS = ("unit", "integration", "e2e")  # the folders, the fastest first
MAX_PROCESSES = 8  # of tests, whatever the number of cores says: a container may own few of them


def lacking(program: str, package: str) -> str | None:
    """What to install where there is no such program; None where there is."""
    return None if shutil.which(program) else f"{program} is not installed (Debian: apt-get install {package})"


def required(peer: str) -> bool:
    """Whether its tests fail where it is missing."""
    exempt = NOT_FROM_DEBIAN | (ROOTS if os.geteuid() else set())
    return os.environ.get("REQUIRE_REAL_PEERS") == "1" and peer not in exempt


def pytest_sessionstart(session: pytest.Session) -> None:
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # it is none in xdist's processes
        session.config.pluginmanager.register(AtOnce(terminal), "failures at once")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is left out, and why, before the first test."""
    lines = [
        f"{'missing, its tests fail' if required(peer) else 'missing, its tests are skipped'}: {peer}: {problem}"
        for peer, problem in MISSING.items()
        if problem
    ]
    if not asks_for_slow(config) and not all(named(config)):
        lines.append("left out: tests marked slow; `make test-all`, -m slow, or the name of a file or test runs them")
    return lines


class AtOnce:
    """Shows each failure when it happens; pytest shows it again at the end."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line("")  # behind the dots
            self._terminal.write_sep("_", f"{report.when} of {report.nodeid} failed", red=True)
            self._terminal.write_line(report.longreprtext)


# --- which tests, in what order, on how many processes --------------------------------------------------------------


def asks_for_slow(config: pytest.Config) -> bool:
    """Whether -m speaks of slow tests."""
    return "slow" in config.option.markexpr


def named(config: pytest.Config) -> list[tuple[Path, str] | None]:
    """Of each argument, the file and the test that it names; None for a folder."""
    parts = (argument.partition("::") for argument in config.args)
    folder = config.invocation_params.dir
    return [((folder / path).resolve(), test) if path.endswith(".py") else None for path, _, test in parts]


def is_named(item: pytest.Item, names: list[tuple[Path, str] | None]) -> bool:
    """Whether an argument names this test or its file."""
    own = item.nodeid.partition("::")[2]
    return any(
        name[0] == item.path.resolve()
        and (not name[1] or own == name[1] or own.startswith((f"{name[1]}[", f"{name[1]}::")))
        for name in names
        if name
    )


def kind(item: pytest.Item) -> tuple[int, bool]:
    """Unit tests first; of the others, slow ones before those that end soon: at the end no process waits long."""
    folders = item.nodeid.partition("::")[0].split("/")
    return next((n for n, name in enumerate(KINDS) if name in folders), len(KINDS)), item.get_closest_marker(
        "slow"
    ) is None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put them in order; leave slow ones out that neither -m nor a name asks for."""
    items.sort(key=kind)
    if asks_for_slow(config):
        return
    names = named(config)
    left_out = {item for item in items if item.get_closest_marker("slow") and not is_named(item, names)}
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return three for two cores, where slow tests run five: many wait for processes of theirs.

    One named test needs no other process.
    """
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # xdist reads it
    if len(config.args) == 1 and "::" in config.args[0]:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores + cores // 2 if asks_for_slow(config) else cores + (cores + 1) // 2, MAX_PROCESSES)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("peer"):
        problem = MISSING[mark.args[0]]
        if problem and required(mark.args[0]):
            pytest.fail(problem)
        if problem:
            pytest.skip(problem)
