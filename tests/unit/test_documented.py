"""The papers cannot lie: log events, timelines, scopes and files are documented as they are, decisions are short."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bench.rig.processes import ROOMS
from storage.key_reader import SCOPES
from tests.papers import SOURCES

ROOT = Path(__file__).parents[2]
DECISIONS = re.split(r"^### ", (ROOT / "docs" / "decisions.md").read_text(), flags=re.MULTILINE)[1:]
TELEMETRY = (ROOT / "docs" / "telemetry.md").read_text()
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
LOGS = ("info", "warning", "error", "exception", "critical", "_log")
MANY = "**"  # fields that are handed on


@cache
def rows(mark: str) -> dict[str, list[str]]:
    """The cells of a table between marks, by what its first cell names."""
    _, _, rest = TELEMETRY.partition(f"<!-- {mark} -->")
    table, _, _ = rest.partition(f"<!-- end of {mark} -->")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "`" in line]
    return {first.strip("`"): others for first, *others in cells}


def calls() -> Iterator[ast.Call]:
    for path in SOURCES:
        yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def text(node: ast.expr) -> str:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) and EVENT.fullmatch(value) else ""


@cache
def logged() -> dict[str, set[str]]:
    """Every event that a logger is called with, and the fields that stand there."""
    found: dict[str, set[str]] = {}
    for call in calls():
        if (
            isinstance(call.func, ast.Attribute)
            and call.func.attr in LOGS
            and call.args
            and (event := text(call.args[0]))
        ):
            fields = {"exception" if keyword.arg == "exc_info" else keyword.arg or MANY for keyword in call.keywords}
            found.setdefault(event, set()).update(fields)
    return found


@cache
def noted() -> dict[str, set[str]]:
    """Every event of a timeline: noted by the gateway, or added by the server."""
    found: dict[str, set[str]] = {}
    for call in calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "note":
            found.setdefault(text(call.args[0]), set()).update(keyword.arg or MANY for keyword in call.keywords)
    for name in ("storage/merge.py", "storage/history.py", "storage/purge.py", "db.py"):
        for event in re.findall(r'"Event": "([a-z._]+)"', (ROOT / name).read_text()):
            found.setdefault(event, set())
    return found


def test_every_log_event_is_documented_and_no_other() -> None:
    assert sorted(rows("events")) == sorted(logged())


@pytest.mark.parametrize("event", sorted(logged()))
def test_every_field_of_a_log_event_is_documented(event: str) -> None:
    _, fields, *_ = rows("events")[event]
    assert logged()[event] - {MANY} <= set(fields.split(", "))


def test_every_scope_of_a_key_is_documented_and_no_other() -> None:
    table = (ROOT / "docs" / "server.md").read_text().partition("| scope | |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)) == sorted(SCOPES)


@pytest.mark.parametrize("entry", DECISIONS)
def test_a_decision_is_at_most_15_lines_and_says_what_it_costs(entry: str) -> None:
    assert len(entry.strip().splitlines()) - 1 <= 15
    assert "Cost:" in entry


def test_readme_names_every_door_and_every_room_once_and_says_what_it_is() -> None:
    _, _, section = (ROOT / "README.md").read_text().partition("\n## Read it\n")
    rows = re.findall(r"^\| (?:\[(\w+\.py)\]\(\1\))? ?\| (?:\[(\w+)/\]\(\2/__init__.py\))? ?\| \S.* \|$", section, re.M)
    assert sorted(door for door, _ in rows if door) == sorted(path.name for path in ROOT.glob("*.py"))
    assert sorted(room for _, room in rows if room) == sorted(ROOMS)


def test_every_event_of_a_timeline_is_documented_and_no_other() -> None:
    assert sorted(rows("timeline")) == sorted(noted())


@pytest.mark.parametrize("event", sorted(noted()))
def test_every_detail_of_a_timeline_is_documented(event: str) -> None:
    details, *_ = rows("timeline")[event]
    assert noted()[event] - {MANY} <= set(details.split(", "))
