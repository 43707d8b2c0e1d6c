"""Scripts that on-complete runs, and what they have written."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.rig import warm
from bench.rig.processes import ROOT, without_settings

SCRIPT = '#!/bin/sh\necho "$1 $REVISION $KIND $VERDICT $NUM_INSTANCES $MISSING" >> ran\n'
ON_COMPLETE = [sys.executable, str(ROOT / "server.py"), "on-complete"]


def script(folder: Path, text: str = SCRIPT, name: str = "run.sh") -> None:
    """Writes a script that may be run."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def ran(folder: Path) -> list[list[str]]:
    """The lines that the script has written, in words."""
    path = folder / "ran"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def until(done: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for what another process does to files."""
    ends_at = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < ends_at, "it did not come about"
        time.sleep(0.02)


def once(folder: Path, url: str, *words: str, exit_code: int = 0) -> str:
    """Runs `on-complete --once`; returns what it wrote to stderr."""
    done = warm.run([*ON_COMPLETE, "--url", url, "--once", *words], cwd=folder, env=without_settings())
    assert done.returncode == exit_code, done.stderr
    return done.stderr
