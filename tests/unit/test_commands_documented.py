"""docs/commands.md has every command of the papers, and the test that runs it or the reason why none does."""

import re
from functools import cache

import pytest

from tests.papers import PAPERS, REGISTER, ROOT, commands, plain, simple_commands

NOT_RUN = "not run here: "
WRITTEN = [(paper.name, command) for paper in PAPERS for command in commands(paper)]


@cache
def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", REGISTER.read_text(), re.MULTILINE))


@cache
def pattern(row: str) -> re.Pattern[str]:
    """What begins with the row's words; those in capitals stand for any text without a space."""
    words = [re.sub(r"[A-Z]{1,}[A-Z_]*\b", r"\\S+", re.escape(word)) for word in row.split()]
    return re.compile(r"\s".join(words) + r"(?!\S)")


def row_of(command: str) -> str | None:
    """The longest row that fits."""
    return max((row for row in rows() if pattern(row).match(command)), key=lambda row: len(row.split()), default=None)


@pytest.mark.parametrize(("paper", "command"), WRITTEN)
def test_every_command_has_a_row(paper: str, command: str) -> None:
    assert row_of(command), f"docs/commands.md lacks `{command}` of {paper}"


def test_a_newcomer_meets_demo_play_and_an_own_image_before_anything_else() -> None:
    readme = ROOT / "README.md"
    hour = ["apt-get install", "git clone", "make demo", "make play", ".venv/bin/uvicorn", ".venv/bin/python client.py"]
    first = [command for command, _ in zip(commands(readme), hour, strict=False)]
    assert [command.startswith(begin) for command, begin in zip(first, hour, strict=True)] == [True] * len(hour), first
    assert readme.read_text().index("storescu") < readme.read_text().index("docs/first-day.md")
    assert readme.read_text().index("docs/first-day.md") < readme.read_text().index("```mermaid")


def test_no_row_is_left_over() -> None:
    assert len(re.findall(r"^\| `", REGISTER.read_text(), re.MULTILINE)) == len(rows())
    assert sorted(rows()) == sorted({row_of(command) or "" for _, command in WRITTEN})


@pytest.mark.parametrize("row", rows())
def test_a_row_names_a_test_that_exists_or_a_reason(row: str) -> None:
    run_by = rows()[row]
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", run_by)
    for file, function in named:
        path = ROOT / file
        assert path.is_file()
        assert not function or re.search(rf"^(?:async )?def {function}\(", path.read_text(), re.MULTILINE), function
    if run_by.startswith(NOT_RUN):
        assert len(run_by.removeprefix(NOT_RUN).split()) > 2
    else:
        assert any(function for _, function in named) or run_by.startswith("`.ci/run`")


def test_what_stands_below_a_table_exists_too() -> None:
    for file, function in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", REGISTER.read_text()):
        assert f"def {function}(" in (ROOT / file).read_text()


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            "one a \\\n  b # why\n# two\nthree 'x # y' | four && five; six",
            ["one a b", "three 'x # y'", "four", "five", "six"],
        ),
        ("b=$(one two | three) ; A=1 two 'x\n y' \"p|q\"", ["one two | three", "two 'x y' \"p|q\""]),
        ("make one two X=1\nmake -C there all", ["make one X=1", "make two X=1", "make -C there all"]),
        ("export A=1\ncd x && alias k='y'\nsource <(one two | three)", ["source <(one two | three)"]),
    ],
)
def test_a_script_is_taken_apart_as_a_shell_does(script: str, found: list[str]) -> None:
    assert [command for part in simple_commands(script) for command in plain(part)] == found


def test_a_row_fits_by_whole_words() -> None:
    assert pattern("make demo").match("make demo PACS=orthanc")
    assert not pattern("make demo").match("make demolish")
    assert pattern("python -m bench.NAME").match("python -m bench.size --series 5")
    assert pattern("storescu -aec STORESCP HOST PORT").match("storescu -aec STORESCP 127.0.0.1 6667 one.dcm")
