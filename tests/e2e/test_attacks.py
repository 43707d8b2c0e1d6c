"""Some of `make attacks`, short; the full round stands in docs/attacks.md."""

import re
import subprocess
import sys

import pytest

from bench.rig.processes import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("only", "fuzz"), [("silent", 0), ("all sizes", 2000)])
def test_good_sender_works_on_while_the_port_is_attacked(only: str, fuzz: int) -> None:
    command = [sys.executable, "-m", "bench.attacks", "--only", only, "--fuzz", str(fuzz)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tried, survived) = re.findall(r"attacks: tried=(\d+) survived=(\d+)", done.stdout)[0]
    assert tried == survived
    assert int(tried) >= (3 if fuzz == 0 else 4)
