"""What commands import: most of them end before the gateway, or the server, could be imported."""

import ast
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.rig.processes import ROOMS
from common import start
from gateway import journal
from storage.key_reader import ALL
from tests.rig.factories import UNBOUNDED
from tests.rig.papers import SOURCES

ROOT = Path(__file__).parents[2]
HEAVY = {
    "alembic",
    "asyncio",
    "dotenv",
    "fastapi",
    "httpx",
    "numpy",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pydicom",
    "pynetdicom",
    "sqlalchemy",
    "structlog",
    "uvicorn",
}
IMPORTED_AT_LAST = "import atexit, sys; atexit.register(lambda: sys.stderr.write('imported ' + ' '.join(sys.modules)))"


def imported(folder: Path, *command: str, exit_code: int = 0, **environment: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    (folder / "sitecustomize.py").write_text(IMPORTED_AT_LAST)
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return set(done.stderr.rpartition("imported ")[2].split())


def tab(program: str, *words: str) -> dict[str, Any]:
    upper = program.replace(".", "_").upper()
    line = " ".join([program, *words])
    return {f"_{upper}_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}


@pytest.fixture
async def journals(tmp_path: Path) -> Path:
    async with journal.Journal.open(tmp_path / "gateway-journal.db", UNBOUNDED):
        pass
    return tmp_path


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A database with the one table that is read."""
    columns = ALL.partition("SELECT ")[2].partition(" FROM ")[0]
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute(f"CREATE TABLE api_keys ({columns})")
    return f"sqlite+aiosqlite:///{tmp_path}/s.db"


# --- outside the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False], ids=["environment", "none"])
@pytest.mark.parametrize("program", ["client.py", "server.py"])
def test_without_its_packages_a_program_says_what_to_type(tmp_path: Path, program: str, made: bool) -> None:
    shutil.copy(ROOT / program, tmp_path)
    (tmp_path / "common").mkdir()
    shutil.copy(ROOT / "common" / "start.py", tmp_path / "common")
    if made:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").touch()
    bare = [sys.executable, "-S", program, "check", "--json"]  # -S: without what is installed
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(bare, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    python = tmp_path / ".venv" / "bin" / "python"
    *_, install, typed = done.stderr.splitlines()
    assert typed.strip() == f"{python} {program} check --json"
    assert ("pip install -r" in install) != made


def test_whatever_is_imported_of_others_is_asked_for_at_the_start() -> None:
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    others = imported - sys.stdlib_module_names - {path.stem for path in ROOT.glob("*.py")} - set(ROOMS)
    brought = {"starlette", "idna"}  # by FastAPI, by httpx
    assert others - brought | {"aiosqlite", "uvicorn"} == set(start.NEEDED)


# --- what is imported -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("client.py", "--help"),
        ("client.py", "status", "--help"),
        ("client.py", "dead-letters", "discard", "--help"),
        ("client.py", "tab", "bash"),
        ("server.py", "--help"),
        ("server.py", "keys", "create", "--help"),
        ("server.py", "tab", "zsh"),
    ],
    ids=" ".join,
)
def test_help_imports_click_and_the_settings(tmp_path: Path, command: tuple[str, ...]) -> None:
    modules = imported(tmp_path, *command)
    assert not modules & (HEAVY | {"rich"})
    assert not {"client", "server"} & modules


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_status_reads_the_journal_and_imports_no_gateway(journals: Path, options: tuple[str, ...]) -> None:
    for command in (("status",), ("dead-letters", "list")):
        code = 3 if command == ("status",) else 0
        modules = imported(journals, "client.py", *command, *options, exit_code=code)
        assert not modules & HEAVY
        assert ("rich" in modules) == (not options and code == 3)


def test_a_list_of_keys_imports_no_database_library(tmp_path: Path, keys: str) -> None:
    assert not imported(tmp_path, "server.py", "keys", "list", DATABASE_URL=keys) & HEAVY


def test_a_command_that_opens_the_database_imports_no_server(tmp_path: Path) -> None:
    create = ("keys", "create", "reader", "--scope", "series:read", "--yes", "--json")
    modules = imported(tmp_path, "server.py", *create, DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/s.db")
    assert "sqlalchemy" in modules
    assert not modules & {"fastapi", "httpx", "pydicom", "uvicorn"}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("client.py", ["sta"]),
        ("client.py", ["--idle-policy", ""]),
        ("client.py", ["dead-letters", ""]),
        ("server.py", ["ke"]),
        ("server.py", ["keys", "create", "x", "--scope", ""]),
    ],
)
def test_tab_imports_click_and_the_settings(tmp_path: Path, program: str, words: list[str]) -> None:
    assert not imported(tmp_path, program, **tab(program, *words)) & (HEAVY | {"rich"})
