"""Which tests run by default, in what order, and what is said before them and while they run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.selection import MISSING, NOT_FROM_DEBIAN, required

ROOT = Path(__file__).parents[2]
FILES = {
    "conftest.py": "from tests.selection import *\nMISSING['fish'] = 'fish is not here'\n",
    "e2e/test_whole.py": """
import pytest
def test_soon(): pass
@pytest.mark.slow
def test_long(): pass
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each(n): pass
@pytest.mark.peer("fish")
def test_with_a_peer(): pass
""",
    "e2e/test_round.py": "import pytest\npytestmark = pytest.mark.slow\ndef test_round(): pass\n",
    "integration/test_parts.py": "def test_parts(): pass\n",
    "unit/test_piece.py": "def test_piece(): pass\n",
}
SOON = ["test_piece", "test_parts", "test_soon", "test_each[1]", "test_with_a_peer"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def said(folder: Path, *arguments: str, exit_code: int = 0, **environment: str) -> str:
    """What pytest says of those tests with the project's settings."""
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    options += ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "xdist.plugin"]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "REQUIRE_REAL"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=folder,
        env=known | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["."], SOON),
        (["-m", "slow", "."], ["test_long", "test_each[2]", "test_round"]),
        (["-m", "not slow", "."], SOON),
        (["e2e/test_whole.py::test_long"], ["test_long"]),
        (["e2e/test_whole.py::test_each"], ["test_each[1]", "test_each[2]"]),
        (["e2e/test_whole.py::test_each[2]", "unit"], ["test_piece", "test_each[2]"]),
        (["e2e/test_round.py"], ["test_round"]),
        (["./e2e/../e2e/test_round.py"], ["test_round"]),
        (["e2e", "-k", "long or soon"], ["test_soon"]),
        (["unit/test_piece.py", "e2e"], ["test_piece", "test_soon", "test_each[1]", "test_with_a_peer"]),
    ],
)
def test_slow_tests_run_where_they_are_asked_for_only(folder: Path, arguments: list[str], run: list[str]) -> None:
    collected = re.findall(r"^\S+::(\S+)$", said(folder, "--collect-only", "-q", *arguments), re.MULTILINE)
    assert sorted(collected) == sorted(run)


def test_what_is_fast_comes_first_and_of_whole_processes_what_is_slow(folder: Path) -> None:
    out = said(folder, "--collect-only", "-q", "-m", "slow or not slow", ".")
    order = re.findall(r"^\S+::(\S+)$", out, re.MULTILINE)
    assert order[:2] == ["test_piece", "test_parts"]
    assert set(order[2:5]) == {"test_long", "test_each[2]", "test_round"}


@pytest.mark.parametrize("processes", ["0", "2"])
def test_what_is_left_out_is_said_before_and_a_failure_at_once(folder: Path, processes: str) -> None:
    (folder / "unit" / "test_piece.py").write_text("def test_piece(): assert 2 * 2 == 5\n")
    out = said(folder, "-n", processes, ".", exit_code=1)
    before, failure, after = re.split(
        r"(?m)^_+ call of unit/test_piece\.py::test_piece failed _+$(?s:(.+?)^E .+?$)", out
    )
    assert "missing, its tests are skipped: fish: fish is not here" in before
    assert "left out: tests marked slow" in before
    assert "assert 2 * 2 == 5" in failure
    assert "FAILURES" in after
    assert "passed" not in before + failure


def test_who_requires_the_peers_sees_what_is_missing_fail(folder: Path) -> None:
    out = said(folder, "e2e/test_whole.py::test_with_a_peer", exit_code=1, REQUIRE_REAL_PEERS="1")
    assert "missing, its tests fail: fish: fish is not here" in out
    assert "left out" not in out


def test_who_is_not_root_is_not_required_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_REAL_PEERS", "1")
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert required("namespaces") == (user == 0)
        assert required("haproxy")


def test_no_property_has_to_be_shown_by_the_clock() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check


def test_every_peer_of_a_test_is_known_and_comes_with_what_ci_installs() -> None:
    marked = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__)
        for name in re.findall(r'mark\.peer\("([^"]+)"\)', path.read_text())
    }
    assert marked <= MISSING.keys()
    packages = re.findall(r"[\w-]+", re.findall(r"packages=\(([^)]+)\)", (ROOT / ".ci" / "run").read_text())[0])
    of_pip_or_always = {"bash", "postgresql", *NOT_FROM_DEBIAN}
    of_another_name = {"promtool": "prometheus", "namespaces": "nftables", "fuse": "fuse3", "cc": "gcc"}
    assert {of_another_name.get(name, name) for name in MISSING.keys() - of_pip_or_always} <= set(packages)
