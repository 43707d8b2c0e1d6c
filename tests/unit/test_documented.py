"""Documents say what the code says: tables, events, names, links."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bench.docs import DOCUMENTS as WITH_TABLES
from bench.docs import MARKED, TABLES, rendered
from bench.rig.processes import ROOMS
from common.events import LOG_EVENTS, TIMELINE_EVENTS, LogEvent, TimelineEvent
from storage.key_reader import SCOPES
from tests.rig.papers import DOCUMENTS, ROOT, SOURCES, commands

EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
LEVELS = {
    "info": "info",
    "warning": "warning",
    "_log": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}
"""By how it is called, the level of what is logged."""
MANY = "**"  # fields that are handed on
ON_ERROR = {"exc_info": "exception"}


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", WITH_TABLES, ids=by_name)
def test_what_is_committed_is_what_is_rendered(document: Path) -> None:
    text = document.read_text()
    assert rendered(text) == text, "run `make docs`"


def test_every_table_stands_in_a_document() -> None:
    placed = [found[2] for document in WITH_TABLES for found in MARKED.finditer(document.read_text())]
    assert sorted(placed) == sorted(TABLES)


# --- events -----------------------------------------------------------------------------------------------------


def calls() -> Iterator[ast.Call]:
    for path in SOURCES:
        yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def text(node: ast.expr) -> str:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) and EVENT.fullmatch(value) else ""


@cache
def logged() -> dict[str, dict[str, set[str]]]:
    """Every event that a logger is called with: the fields that stand there, by level."""
    found: dict[str, dict[str, set[str]]] = {}
    for call in calls():
        if (
            isinstance(call.func, ast.Attribute)
            and call.func.attr in LEVELS
            and call.args
            and (event := text(call.args[0]))
        ):
            fields = {ON_ERROR.get(keyword.arg or "", keyword.arg) or MANY for keyword in call.keywords}
            fields |= {"exception"} if call.func.attr == "exception" else set()
            found.setdefault(event, {}).setdefault(LEVELS[call.func.attr], set()).update(fields)
    return found


@cache
def noted() -> dict[str, set[str]]:
    """Every event of a timeline: noted by the gateway, or added by the server."""
    found: dict[str, set[str]] = {}
    for call in calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr.lstrip("_") == "note":
            for event in filter(None, map(text, call.args)):
                found.setdefault(event, set()).update(keyword.arg or MANY for keyword in call.keywords)
    for name in (
        "storage/merge.py",
        "storage/history.py",
        "storage/declarations.py",
        "storage/purge.py",
        "storage/studies.py",
        "db.py",
    ):
        for event in re.findall(r'"Event": "([a-z._]+)"', (ROOT / name).read_text()):
            found.setdefault(event, set())
    return found


def test_every_event_that_is_logged_is_registered_with_its_level_and_no_other() -> None:
    assert {event.name: {*event.level.split()} for event in LOG_EVENTS} == {
        name: {*levels} for name, levels in logged().items()
    }
    assert [event.name for event in LOG_EVENTS] == sorted(logged())


@pytest.mark.parametrize("event", LOG_EVENTS, ids=lambda event: event.name)
def test_every_field_of_a_log_event_is_registered(event: LogEvent) -> None:
    fields = set().union(*logged()[event.name].values())
    assert fields - {MANY} <= set(event.fields.split())


def test_every_event_of_a_timeline_is_registered_and_no_other() -> None:
    assert [event.name for event in TIMELINE_EVENTS] == sorted(noted())


@pytest.mark.parametrize("event", TIMELINE_EVENTS, ids=lambda event: event.name)
def test_every_detail_of_a_timeline_is_registered(event: TimelineEvent) -> None:
    assert noted()[event.name] - {MANY} <= set(event.details.split())


def test_every_scope_of_a_key_is_documented_and_no_other() -> None:
    table = (ROOT / "docs" / "server.md").read_text().partition("| scope | |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)) == sorted(SCOPES)


# --- files, functions, links ------------------------------------------------------------------------------------


def test_readme_names_every_door_and_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (?:\[(\w+\.py)\]\(\1\))? ?\| (?:\[(\w+)/\]\(\2/(?:__init__\.py)?\))? ?\| \S", readme, re.M)
    assert sorted(door for door, _ in rows if door) == sorted(path.name for path in ROOT.glob("*.py"))
    assert sorted(room for _, room in rows if room) == sorted([*ROOMS, "web"])


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "architecture.md"], ids=by_name)
def test_every_function_that_is_named_is_there(document: Path) -> None:
    page = document.read_text()
    named = re.findall(r"\]\((?:\.\./)?([\w/]+\.py)\)\s+`(\w+)`", page)
    assert len(named) > 5
    assert [(file, name) for file, name in named if name not in defined(ROOT / file)] == []
    private = set(re.findall(r"`(_[a-z_]+)`", page))
    assert private <= {
        name for file in re.findall(r"\]\((?:\.\./)?([\w/]+\.py)\)", page) for name in defined(ROOT / file)
    }


def defined(path: Path) -> set[str]:
    """Return the functions and classes of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@cache
def anchors(path: Path) -> set[str]:
    """Return those of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_document_is_listed_for_its_reader() -> None:
    listed = re.findall(
        r"^\| \[[\w.-]+\]\((?:\.\./)?([\w.-]+)\) \|", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE
    )
    assert {document.name for document in DOCUMENTS} <= {*listed, "index.md"}


def test_readme_holds_the_commands_that_start_everything() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("docker compose up", "python client.py", "uvicorn server:app", "pytest", "make demo", "make test"):
        assert command in readme


def test_readmes_way_to_a_pacs_is_that_of_its_guide() -> None:
    guide = (ROOT / "docs" / "first-day.md").read_text()
    way = [command for command in commands(ROOT / "README.md") if command.startswith(".venv/bin/")]
    assert len(way) == 5
    assert [command for command in way if command not in guide] == []
