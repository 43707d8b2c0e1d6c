"""The page's files: what a policy of the browser does not check, or checks too late."""

import re
from pathlib import Path

import pytest

from common.events import TIMELINE_EVENTS
from gateway.idle import Phase

WEB = Path(__file__).parents[2] / "web"
SCRIPTS = sorted(WEB.glob("*.js"))
HTML = (WEB / "index.html").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_begins_with_its_door_plate_and_makes_no_html_of_text(script: Path) -> None:
    text = script.read_text()
    assert re.match(r"// [A-Z].*[.]\n\n", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setHTML", text)


@pytest.mark.parametrize("file", [WEB / "page.css", WEB / "index.html", *SCRIPTS], ids=lambda path: path.name)
def test_no_file_names_another_host(file: Path) -> None:
    assert set(re.findall(r"(?:https?:)?//[\w.]+\.\w+", file.read_text())) <= {"http://www.w3.org"}


def test_the_html_has_neither_styles_nor_scripts_of_its_own() -> None:
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", HTML)
    assert all((WEB.parent / path).is_file() for path in re.findall(r'(?:src|href)="(web/[^"]+)"', HTML))


def test_every_import_of_a_script_exists() -> None:
    for script in SCRIPTS:
        for name in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert (WEB / name).is_file(), (script.name, name)


def test_the_vendored_library_is_the_one_named_and_has_its_licence() -> None:
    (version,) = re.findall(r"uPlot (\d+\.\d+\.\d+)", (WEB / "vendor" / "README").read_text())
    assert f"v{version}" in (WEB / "vendor" / "uPlot.iife.min.js").read_text()
    assert "MIT License" in (WEB / "vendor" / "LICENSE").read_text()


def test_the_page_has_words_for_every_event_of_a_timeline_and_every_phase() -> None:
    """The sentence of an event that it does not know is its fields as they are."""
    series, sources = ((WEB / name).read_text() for name in ("series.js", "sources.js"))
    assert not {event.name for event in TIMELINE_EVENTS} - set(re.findall(r'case "([a-z.]+)":', series))
    for script in (series, sources):
        (phases,) = re.findall(r"const PHASES = \{(.*?)\};", script, re.DOTALL)
        assert {phase.value for phase in Phase} == set(re.findall(r"^  (\w+):", phases, re.MULTILINE))
