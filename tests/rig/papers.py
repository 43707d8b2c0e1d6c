"""The files of the two programs, the documents, and the commands that stand in a document; these can be run."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.rig.processes import ROOMS, without_settings

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("*.py"))
"""Every Python file of the two programs."""
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
TRY = (ROOT / "docs" / "try.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
INDEX = (ROOT / "docs" / "index.md").read_text()
SERVER_GUIDE = (ROOT / "docs" / "server.md").read_text()
JOBS = (ROOT / "docs" / "jobs.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
KUBERNETES = (ROOT / "docs" / "kubernetes.md").read_text()


def commands(document: Path) -> Iterator[str]:
    """Yield every command of a document's shell blocks, in its order; lines that go on are joined, comments removed."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if command := re.sub(r"(?:^|\s)#.*", "", line).strip():
            yield " ".join(command.split())


def lines(paper: str, beginning: str) -> list[str]:
    """The commands of a paper's blocks that begin so, as they stand there, over several lines too."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", paper, re.MULTILINE | re.DOTALL))
    found = re.findall(rf"^{re.escape(beginning)}(?:.*\\\n)*.*", blocks, re.MULTILINE)
    assert found, beginning
    return [str(line) for line in found]


def line(paper: str, beginning: str) -> str:
    """The one that begins so."""
    (one,) = set(lines(paper, beginning))
    return one


def filled(command: str, **values: object) -> str:
    """With our Python and our files, and these texts in the place of others."""
    command = re.sub(r"^(?:\.venv/bin/)?python ", f"{sys.executable} ", command)
    command = re.sub(r"\b(client|server)\.py", rf"{ROOT}/\1.py", command)
    for name, value in values.items():
        command = command.replace(name, str(value))
    return command


def shell(command: str, folder: Path = ROOT, /, **environment: str) -> str:
    """What a command prints; it has to succeed."""
    of_make = {"MAKEFLAGS": "", "MAKELEVEL": "", "ARGS": ""}  # which may run us
    env = without_settings() | {"no_proxy": "*"} | of_make | environment
    done = subprocess.run(["sh", "-ec", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
