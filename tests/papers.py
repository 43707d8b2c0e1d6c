"""Commands of README.md, CONTRIBUTING.md and docs/*.md, as they stand there: one simple command each."""

import re
from collections.abc import Iterator
from pathlib import Path

from bench.rig.processes import ROOMS

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("*.py"))
"""Every Python file of the two programs."""
REGISTER = ROOT / "docs" / "commands.md"
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").glob("*.md")} - {REGISTER})]
# What an inline code begins with to be a command and no name, file or setting, if it has a second word.
PROGRAM = re.compile(
    r"apt-get|bash|curl|dcmsend|docker|echoscu|git|install|journalctl|k|kubectl|make|openssl|pg_dump|pg_restore|pip"
    r"|promtool|psql|pytest|python3?|sh|source|sqlite3|storescu|systemctl|systemd-\w+|uvicorn|\.venv/\S+"
)
ALONE = {"./client.py", "./server.py", ".ci/run"}  # these are commands without a second word
SETTING_UP = {"alias", "cd", "export"}  # of the shell itself
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(paper: Path) -> Iterator[str]:
    """Every command of a paper, in its order, without assignments before it and comments behind it."""
    text = paper.read_text()
    shown = "\n".join(block for language, block in FENCED.findall(text) if language in ("sh", "bash"))
    for command in simple_commands(shown):
        yield from plain(command)
    for code in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
        for command in simple_commands(code.replace("\\|", "/")):
            words = command.split()
            if words[0] in ALONE or (PROGRAM.fullmatch(words[0]) and words[1:]):
                yield from plain(command)


def plain(command: str) -> Iterator[str]:
    """Without assignments; of `make one two`, each; of `key=$(…)`, what stands within."""
    if within := re.fullmatch(r"\w+=\$\((.*)\)", command):
        command = within[1]
    words = command.split()
    while words and re.match(r"\w+=", words[0]):
        del words[0]
    while words and words[-1] == "…":
        del words[-1]
    if not words or words[0] in SETTING_UP:
        return
    if words[0] == "make" and not words[1].startswith("-"):
        variables = [word for word in words[1:] if "=" in word]
        yield from (" ".join(["make", target, *variables]) for target in words[1:] if "=" not in target)
    else:
        yield " ".join(words)


def simple_commands(script: str) -> Iterator[str]:
    """The commands between newlines, `;`, `|` and `&&`, with lines that go on joined. Quotes and `$(…)` stay whole."""
    token = re.compile(
        r"""(?P<joined>\\\n) | (?P<comment>(?:^|(?<=\s))\#[^\n]*) | (?P<end>\n|;|\||&&)
        | "(?:\\.|[^"\\])*" | '[^']*' | [$<]\((?:[^()'"]|'[^']*'|"[^"]*")*\) | \\. | .""",
        re.VERBOSE | re.DOTALL,
    )
    command = ""
    for found in token.finditer(script + "\n"):
        if found["end"]:
            if command.strip():
                yield " ".join(command.split())
            command = ""
        elif not found["comment"]:
            command += " " if found["joined"] else found[0]
