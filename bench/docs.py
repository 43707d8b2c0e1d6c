"""`make docs`: write every reference table of the documentation from the code.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of TABLES. A test says that what is
committed is what is rendered.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from api.access import Scopes
from bench.rig.processes import ROOT
from bench.rooms import MAY_IMPORT
from common import metrics
from common.events import LOG_EVENTS, TIMELINE_EVENTS
from common.kinds import Setting
from common.settings import GatewaySettings, ServerSettings, Settings, variable
from dicom.statuses import STORE_STATUSES
from models import Change, SeriesRecord, SeriesReport
from server import app
from storage.answers import StudyRecord

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MEASURED = dict.fromkeys(metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase))
SCOPES = Scopes(app.routes)
SHOWN_DEFAULTS = {"GATEWAY_ID": "host name and a random part"}  # those that are another each time

Rows = Iterable[Iterable[str]]


def table(heads: str, rows: Rows) -> str:
    """Render a Markdown table; `heads` separates its columns by commas, and the last one has no title."""
    columns = [*heads.split(", "), ""]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def code(*words: str) -> str:
    """Render words as code, separated by commas."""
    return ", ".join(f"`{word}`" for word in words)


def cell(text: str) -> str:
    """Return a text that breaks no cell: in one line, without bars."""
    return " ".join(text.split()).replace("|", "\\|")


# --- what is listed ---------------------------------------------------------------------------------------------


def settings(cls: type[Settings]) -> str:
    """List the settings of a process, in the order of their declaration."""
    names = {variable(cls, name): setting for name, setting in cls.model_fields.items()}
    return table(
        "variable, default",
        ([code(name), default(name, setting), cell(setting.description)] for name, setting in names.items()),
    )


def default(name: str, setting: Setting) -> str:
    """Return a setting's default as it would be typed; empty where there is none."""
    if name in SHOWN_DEFAULTS:
        return SHOWN_DEFAULTS[name]
    value = setting.default
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(f"{value:g}" if isinstance(value, float) else str(value))


def measured(prefix: str) -> str:
    """List the metrics of a process."""
    return table("metric, type, labels", (metric(each) for each in MEASURED if each._name.startswith(prefix)))


def metric(each: MetricWrapperBase) -> Iterator[str]:
    """Yield the cells of one metric: its name as it is exposed, type, labels and meaning."""
    yield code(f"{each._name}_total" if each._type == "counter" else each._name)
    yield str(each._type)
    yield code(*each._labelnames)
    yield cell(each._documentation)


def fields(model: type[BaseModel]) -> str:
    """List the fields of what crosses HTTP. One without a description has that of the stored record's."""
    schema = model.model_json_schema()["properties"]
    record = SeriesRecord.model_json_schema()["properties"]
    return table(
        "field, type",
        (
            [code(name), kind(field), cell(field.get("description") or record.get(name, {}).get("description", ""))]
            for name, field in schema.items()
        ),
    )


def kind(field: dict[str, Any]) -> str:
    """Name a field's type in JSON."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(kind(each) for each in field["anyOf"]))
    return "time" if field.get("format") == "date-time" else str(field.get("type", "object"))


def routes() -> str:
    """List what the server answers, with the scope that a key needs."""
    return table(
        "request, scope",
        (
            [code(f"{method.upper()} {path}"), scope(method.upper(), path, route), cell(meaning(route))]
            for path, methods in sorted(app.openapi()["paths"].items())
            for method, route in methods.items()
        ),
    )


def scope(method: str, path: str, route: dict[str, Any]) -> str:
    """Name the scope that a request needs."""
    if "security" not in route:
        return "no key"
    return code(name) if (name := SCOPES.needed(method, path)) else "any key"


def meaning(route: dict[str, Any]) -> str:
    """Return the first paragraph of a route's description."""
    return str(route.get("description", "")).partition("\n\n")[0]


def store_statuses() -> str:
    """List how a C-STORE is answered."""
    return table("status", ([code(f"0x{status:04X}"), cell(text)] for status, text in STORE_STATUSES.items()))


def log_events() -> str:
    """List the lines that are logged."""
    return table(
        "event, level, fields",
        ([code(e.name), ", ".join(e.level.split()), ", ".join(e.fields.split()), cell(e.meaning)] for e in LOG_EVENTS),
    )


def timeline_events() -> str:
    """List the entries of timelines."""
    return table(
        "event, details", ([code(e.name), ", ".join(e.details.split()), cell(e.meaning)] for e in TIMELINE_EVENTS)
    )


def import_rules() -> str:
    """List which room may import which."""
    rows = ([code(room), code(*sorted(others)) or "nothing of ours"] for room, others in MAY_IMPORT.items())
    return "\n".join(["| room | may import |", "|---|---|", *(f"| {' | '.join(cells)} |" for cells in rows)])


TABLES: dict[str, Callable[[], str]] = {
    "gateway-settings": lambda: settings(GatewaySettings),
    "server-settings": lambda: settings(ServerSettings),
    "gateway-metrics": lambda: measured("gateway_"),
    "server-metrics": lambda: measured("server_"),
    "log-events": log_events,
    "timeline-events": timeline_events,
    "store-statuses": store_statuses,
    "routes": routes,
    "report-fields": lambda: fields(SeriesReport),
    "record-fields": lambda: fields(SeriesRecord),
    "study-fields": lambda: fields(StudyRecord),
    "change-fields": lambda: fields(Change),
    "import-rules": import_rules,
}


# --- writing ----------------------------------------------------------------------------------------------------


def rendered(document: str) -> str:
    """Return a document with every table in it as the code has it now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", document)


def write(path: Path) -> bool:
    """Render a document; return whether it changed."""
    before = path.read_text()
    after = rendered(before)
    if after != before:
        path.write_text(after)
    return after != before


def main() -> None:
    """Render all documents and say which ones changed."""
    changed = [path for path in DOCUMENTS if write(path)]
    for path in changed:
        print(f"written: {path.relative_to(ROOT)}")
    print(f"{len(changed)} of {len(DOCUMENTS)} documents changed")


if __name__ == "__main__":
    main()
