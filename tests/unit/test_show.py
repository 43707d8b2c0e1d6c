"""What commands print: one form of time, in tables and JSON alike."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from common.times import stamp
from console.tables import show
from tests.rig.papers import SOURCES

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 1, 31, 12, 0, 0, 987654, UTC)
TOLD = "2026-01-31T12:00:00Z"


def printed(capsys: pytest.CaptureFixture[str], result: Any, *, as_json: bool) -> str:
    show(result, as_json)
    return capsys.readouterr().out


def test_a_time_is_utc_to_the_second() -> None:
    assert stamp(NOON) == stamp(NOON.astimezone(timezone(timedelta(hours=5)))) == TOLD


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "table"])
@pytest.mark.parametrize("many", [True, False], ids=["list", "one"])
def test_seconds_since_1970_are_printed_as_a_time(
    capsys: pytest.CaptureFixture[str], as_json: bool, many: bool
) -> None:
    row = {"changed_at": NOON.timestamp(), "seconds": 1.5, "never_at": None}
    out = printed(capsys, [row] if many else row, as_json=as_json)
    assert TOLD in out
    assert "1.5" in out
    if as_json:
        found = json.loads(out)
        assert (found[0] if many else found) == {"changed_at": TOLD, "seconds": 1.5, "never_at": None}


@pytest.mark.parametrize("value", [1e300, -1.0, "x", True])
def test_what_is_no_time_stays_what_it_is(capsys: pytest.CaptureFixture[str], value: Any) -> None:
    assert json.loads(printed(capsys, {"changed_at": value}, as_json=True)) == {"changed_at": value}
    assert printed(capsys, {"changed_at": value}, as_json=False)


def test_nothing_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, [], as_json=False) == "none\n"
    assert printed(capsys, [], as_json=True) == "[]\n"


def test_no_command_has_a_form_of_its_own() -> None:
    forms = {path.name for path in SOURCES if re.search(r"%Y|strftime", path.read_text())}
    assert forms == {"times.py", "journal_file.py", "query_retrieve.py"}  # a file's name, and DICOM's DA
