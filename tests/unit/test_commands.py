"""What `python server.py` does beside a server that is just starting."""

from pathlib import Path
from typing import Any

import click
import pytest

from api.cli import commands
from common.at_rest import locked
from common.control import NotRunning
from common.settings import ServerSettings


def settings(folder: Path) -> ServerSettings:
    return ServerSettings(database_url=f"sqlite+aiosqlite:///{folder}/series.db")


def test_a_command_waits_for_a_server_that_has_the_database_and_does_not_answer_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[dict[str, Any]] = [{}, {}, {"rows": []}]

    def asked(*_: Any, **__: Any) -> dict[str, Any]:
        if answer := answers.pop(0):
            return answer
        raise NotRunning

    monkeypatch.setattr(commands, "_asked", asked)
    with locked(tmp_path / "series.db"):
        assert commands._do(settings(tmp_path), "list_keys") == {"rows": []}
    assert answers == []


def test_a_command_says_what_has_the_database_where_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STARTS_WITHIN_S", 0.5)
    with locked(tmp_path / "series.db"), pytest.raises(click.ClickException, match="is used by another server process"):
        commands._do(settings(tmp_path), "list_keys")
    assert commands._do(settings(tmp_path), "list_keys") == {"rows": []}
