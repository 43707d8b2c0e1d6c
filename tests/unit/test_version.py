"""One version, which everything of ours says; the CHANGELOG has its entry."""

import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest

from common.outgoing import http_client
from common.version import compared, said_in, version

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
RELEASES = re.findall(r"^## (?!Unreleased$)(\S+) - (\S+)$", CHANGELOG, re.MULTILINE)


def numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def entry(release: str) -> str:
    return CHANGELOG.partition(f"\n## {release} ")[2].partition("\n## ")[0]


def test_the_version_is_pyprojects() -> None:
    assert version() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())


def test_the_container_holds_what_the_version_is_read_from() -> None:
    assert re.search(r"^COPY \. \.$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert "!pyproject.toml" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("program", ["client.py", "server.py"])
def test_both_programs_say_it(program: str) -> None:
    command = [sys.executable, str(ROOT / program), "--version"]
    assert subprocess.check_output(command, text=True) == f"series-gateway {version()}\n"


async def test_requests_say_who_asks() -> None:
    async with http_client() as http:
        assert http.headers["User-Agent"] == f"series-gateway/{version()}"


@pytest.mark.parametrize(
    ("theirs", "is_"),
    [
        (version(), None),
        (None, "older"),
        ("", "older"),
        ("0.1.9", "older"),
        (f"{version()}.1", "newer"),
        ("10.0.0", "newer"),
        ("9" * 9999, "newer"),
        (7, "older"),
        ("<script>", "older"),
    ],
)
def test_another_version_is_older_or_newer(theirs: object, is_: str | None) -> None:
    assert compared(theirs) == is_


@pytest.mark.parametrize("answer", ["", "[]", "null", '{"version": 1}', "[" * 100_000, '{"status": "ready"}', "<html>"])
def test_an_answer_without_a_version_says_none(answer: str) -> None:
    assert said_in(answer) is None


# --- the changelog ----------------------------------------------------------------------------------------------


def test_the_newest_release_is_this_version() -> None:
    assert RELEASES[0][0] == version()


def test_releases_stand_in_their_order_with_their_days() -> None:
    assert [numbers(release) for release, _ in RELEASES] == sorted({numbers(r) for r, _ in RELEASES}, reverse=True)
    days = [date.fromisoformat(day) for _, day in RELEASES]
    assert days == sorted(days, reverse=True)


def test_every_heading_is_a_release() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert [h for h in headings if h != "Unreleased"] == [f"{release} - {day}" for release, day in RELEASES]


@pytest.mark.parametrize("release", [release for release, _ in RELEASES[:-1]])
def test_a_release_says_how_to_upgrade_to_it(release: str) -> None:
    """In which order, what is migrated, what refuses what; the first one had nobody to upgrade."""
    notes = entry(release).partition("### Upgrade\n")[2].partition("\n### ")[0]
    assert all(word in notes for word in ("server", "gateway", "migrat", "refuse"))
