"""The gateway's process: what signals do, in a process of its own."""

import os
import signal
import subprocess
import sys

import pytest

from bench.rig.processes import ROOT


@pytest.mark.parametrize(
    ("signals", "ends_by"),
    [
        (["SIGINT"], 0),
        (["SIGTERM"], 0),
        (["SIGINT", "SIGINT"], -signal.SIGINT),
        (["SIGTERM", "SIGINT"], -signal.SIGINT),
        (["SIGINT", "SIGTERM"], -signal.SIGTERM),
    ],
)
def test_one_signal_drains_and_a_second_one_kills_however_soon_it_comes(signals: list[str], ends_by: int) -> None:
    command = [sys.executable, "-m", "tests.rig.programs.signalled", *signals]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ends_by, done.stderr
    assert done.stdout.split() == ([] if ends_by else ["7"])
