"""The import arrows of the map hold."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "models": set(),
    "settings": set(),
    "telemetry": {"settings", "models", "metrics"},
    "metrics": set(),
    "outgoing": set(),
    "header": {"models"},
    "upper_layer": set(),
    "scp": {"models", "header", "settings", "upper_layer", "metrics"},
    "journal": {"models", "header", "metrics", "journal_rows", "telemetry"},
    "journal_rows": {"models", "header"},
    "idle": set(),
    "collector": {"models", "header", "idle", "pacs"},
    "dispatcher": {"models", "journal", "control", "metrics", "spans", "calls", "telemetry"},
    "spans": {"models", "threads"},
    "calls": {"models", "settings", "outgoing"},
    "heartbeat": {"models", "settings", "metrics", "journal", "collector", "dispatcher", "calls"},
    "traces": {"models"},
    "pacs": {"models", "header", "scu", "settings", "threads"},
    "scu": {"models", "scp", "settings"},
    "control": {"models"},
    "workers": {"settings", "scp"},
    "threads": set(),
    "check": {"models", "settings", "telemetry", "threads"},
    "disk": {"check"},
    "certificates": {"check"},
    "ports": {"check"},
    "reach": {"calls", "check", "pacs", "scp", "scu", "settings", "threads"},
    "gateway_check": {"certificates", "check", "control", "disk", "journal", "ports", "reach", "scp", "settings"},
    "server_check": {"check", "control", "disk", "engine", "ports", "schema", "settings", "threads"},
    "cli": {"settings"},
    "shell_completion": set(),
    "terminal": {"disk", "models"},
    "commands": {
        "models",
        "settings",
        "telemetry",
        "journal",
        "control",
        "dispatcher",
        "scp",
        "workers",
        "show",
        "check",
        "gateway_check",
        "cli",
        "shell_completion",
        "terminal",
    },
    "client": {
        "models",
        "settings",
        "scp",
        "journal",
        "idle",
        "collector",
        "dispatcher",
        "pacs",
        "traces",
        "control",
        "commands",
        "metrics",
        "calls",
        "heartbeat",
        "spans",
        "telemetry",
    },
    "show": {"models"},
    "schema": {"models"},
    "union": {"models"},
    "engine": {"metrics", "models", "settings"},
    "db": {"metrics", "models", "settings", "schema", "union", "engine"},
    "matching": set(),
    "search": {"schema", "union", "matching"},
    "dicom_query": {"models", "matching", "search"},
    "dicom_json": {"union", "search"},
    "dicomweb": {"db", "search", "dicom_query", "dicom_json"},
    "keys": {"engine", "schema"},
    "access": {"metrics", "models", "settings", "engine", "keys"},
    "follow": {"models", "db", "engine"},
    "patience": {"follow"},
    "webhooks": {"models", "db", "engine", "follow", "schema"},
    "move": {"engine", "schema"},
    "stored": {"matching", "schema", "union"},
    "overview": {"metrics", "models", "db", "engine", "follow", "stored", "union"},
    "webpage": {"models", "access", "keys"},
    "admin": {
        "models",
        "settings",
        "db",
        "engine",
        "keys",
        "webhooks",
        "move",
        "schema",
        "control",
        "show",
        "check",
        "server_check",
        "cli",
        "shell_completion",
    },
    "server": {
        "metrics",
        "outgoing",
        "spans",
        "models",
        "settings",
        "telemetry",
        "db",
        "engine",
        "dicomweb",
        "overview",
        "webpage",
        "keys",
        "access",
        "follow",
        "patience",
        "webhooks",
        "control",
        "admin",
    },
}


def imported_by(module: str) -> set[str]:
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return names & MAY_IMPORT.keys()


def test_every_module_is_on_the_map() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_module_imports_only_what_the_map_allows(module: str) -> None:
    assert imported_by(module) <= MAY_IMPORT[module]
