"""A short round of `make faults`: every fault once, at a random moment. docs/reliability.md has the full round.

Power cuts: test_power_cuts.py.
"""

import re
import subprocess
import sys

import pytest

from bench.faults import FAULTS, POWER_CUT, can_mount, missing
from bench.rig.processes import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_fault_loses_or_doubles_what_was_acknowledged() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.faults", "--trials", "1", "--without", POWER_CUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = [fault for fault in FAULTS if POWER_CUT not in fault.name]
    trials = len([fault for fault in chosen if not missing(fault, can_mount())])
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"faults: trials={trials} acknowledged=[1-9]\d* lost=0 doubled=0", last)
