"""A short round of `make soak`: every kind of restart, late images, purges. docs/reliability.md has a long one."""

import re
import subprocess
import sys

import pytest

from bench.rig.processes import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("database", [[], ["--postgresql"]], ids=["sqlite", "postgresql"])
def test_a_short_year_loses_and_doubles_nothing(database: list[str]) -> None:
    command = [sys.executable, "-m", "bench.soak", "--series", "60", "--sent", "30", "--seed", "1", *database]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"soak: series=60 lost=0 doubled=0 grows=\d+", done.stdout.splitlines()[-1])
