"""docs/operations.md and its neighbours name settings, commands, events, files and chapters that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cli.commands import command_line as of_server
from common.settings import GatewaySettings, ServerSettings, variable
from tests.papers import SOURCES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "operations.md").read_text()
PAGES = ["operations.md", "metrics.md", "conformance.md", "comparison.md"]
SETTINGS = {variable(cls, name) for cls in (GatewaySettings, ServerSettings) for name in cls.model_fields}
SOURCE = "\n".join(path.read_text() for path in SOURCES)


def links(page: str) -> Iterator[str]:
    text = (DOCS / page).read_text()
    yield from (target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http"))


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = DOCS / path if path else DOCS / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"\b(?:GATEWAY|SERVER)_[A-Z_]*[A-Z]\b", (DOCS / page).read_text()))
    assert named <= SETTINGS


def test_every_log_event_that_is_named_exists() -> None:
    table = GUIDE.partition("## Log events")[2].partition("\n## ")[0]
    named = {
        event for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for event in re.findall(r"`(.+?)`", row)
    }
    assert len(named) > 10
    assert {event for event in named if f'"{event}"' not in SOURCE} == set()


def test_every_command_of_the_server_that_is_named_exists() -> None:
    commands = set(re.findall(r"python server\.py (\w+)", GUIDE))
    assert commands <= set(of_server().commands)
    assert {"check", "move", "webhooks"} <= commands


def test_every_file_of_deploy_that_is_named_exists() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", "".join((DOCS / page).read_text() for page in PAGES)))
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_figures_of_one_server_are_those_that_were_measured() -> None:
    scale = (DOCS / "scale.md").read_text()
    measured = [
        [float(cell) for cell in row]
        for row in re.findall(r"^\| PostgreSQL +\| 1 +\| \d+ +\| (\d+) +\| \d+ +\| ([\d.]+) ", scale, re.MULTILINE)
    ]
    rates, cpu_ms = ([row[n] for row in measured] for n in (0, 1))
    said = f"{min(rates):g} to {max(rates):g} series/s"
    assert f"| {said} on PostgreSQL, in the table above |" in scale
    assert f"{said} of 100 images on PostgreSQL, {min(cpu_ms):.0f} to {max(cpu_ms):.0f} ms of its CPU each" in GUIDE
    assert f"{min(cpu_ms):.0f} to {max(cpu_ms):.0f} ms a series let it" in scale


def test_figures_of_the_comparison_are_those_that_were_measured() -> None:
    comparison, benchmarks = ((DOCS / page).read_text() for page in ("comparison.md", "benchmarks.md"))
    for sender, ours, *others in re.findall(
        r"^\| `storescu` (.+?), \d \| (\d+) \| (\d+) \| \**(\d+)\** \| \**(\d+)\** \| (\d+) \|$",
        comparison,
        re.MULTILINE,
    ):
        label = "storescu nodelay, 33 KB" if "NODELAY" in sender else "storescu, 33 KB"
        (row,) = [r for r in benchmarks.splitlines() if r.startswith(f"| {label}, ") and f"**{ours}/s**" in r]
        orthanc, files, ignored, pynetdicom = others
        assert [f"{n}/s" in row for n in (ignored, files, orthanc, pynetdicom)] == [True] * 4
    completion = (DOCS / "completion.md").read_text()
    for policy, wrong in (("fixed 5 s", "201.0"), ("fixed 60 s", "0.0"), ("**adaptive**", "4.4")):
        assert f"| {policy} | {wrong} |" in completion
