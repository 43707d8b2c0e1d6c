"""The files of the two programs, the documents, and the commands that stand in a document."""

import re
from collections.abc import Iterator
from pathlib import Path

from bench.rig.processes import ROOMS

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("*.py"))
"""Every Python file of the two programs."""
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> Iterator[str]:
    """Yield every command of a document's shell blocks, in its order; lines that go on are joined, comments removed."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if command := re.sub(r"(?:^|\s)#.*", "", line).strip():
            yield " ".join(command.split())
