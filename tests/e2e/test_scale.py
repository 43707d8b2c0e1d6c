"""A short kill test of `make scale`, and what shows that it can fail. docs/scale.md has the full one."""

import re
import subprocess
import sys

import pytest

from bench.rig.processes import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer("haproxy"),
    pytest.mark.peer("postgresql"),
    pytest.mark.timeout(1800),
]


def scale(*arguments: str) -> tuple[int, str]:
    """One trial: its exit code and its output."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--only", "kills", "--trials", "1", "--images", "200", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_nothing_is_lost_or_doubled_whichever_process_is_killed() -> None:
    code, output = scale()
    assert code == 0, output
    assert output.splitlines()[-1] == "scale: lost=0 doubled=0"


@pytest.mark.parametrize("broken", ["union", "follower"])
def test_the_kill_test_notices_what_is_broken(broken: str) -> None:
    code, output = scale("--break-it", broken)
    assert code == 1, output
    assert re.fullmatch(r"scale: lost=0 doubled=[1-9]\d*", output.splitlines()[-1]), output
