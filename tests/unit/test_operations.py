"""Documents name settings, commands, events and files that exist."""

import re
from pathlib import Path

import pytest

from api.cli.commands import command_line as of_server
from common.settings import GatewaySettings, ServerSettings, variable
from tests.rig.papers import DOCUMENTS, OPERATIONS, ROOT, SOURCES

SETTINGS = {variable(cls, name) for cls in (GatewaySettings, ServerSettings) for name in cls.model_fields}
NO_SETTINGS = {"GATEWAY_IDEL_TIMEOUT_S", "GATEWAY_PORT", "SERVER_PORT"}  # an error that is told, Kubernetes' own
SOURCE = "\n".join(path.read_text() for path in SOURCES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(document: Path) -> None:
    named = set(re.findall(r"\b(?:GATEWAY|SERVER)_[A-Z_]*[A-Z]\b", document.read_text()))
    assert named - NO_SETTINGS <= SETTINGS


def test_every_log_event_that_is_named_exists() -> None:
    table = OPERATIONS.partition("## Log events")[2].partition("\n## ")[0]
    named = {
        event for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for event in re.findall(r"`(.+?)`", row)
    }
    assert len(named) > 10
    assert {event for event in named if f'"{event}"' not in SOURCE} == set()


def test_every_command_of_the_server_that_is_named_exists() -> None:
    commands = set(re.findall(r"python server\.py (\w+)", OPERATIONS))
    assert commands <= set(of_server().commands)
    assert {"check", "move", "webhooks"} <= commands


def test_every_file_of_deploy_that_is_named_exists() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", "".join(document.read_text() for document in DOCUMENTS)))
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []
