"""Short rounds of `make scale`, and what shows that they can fail. docs/scale.md has the full ones."""

import os
import re
import subprocess
import sys

import pytest

from bench.rig.network import NAMESPACES, PREFIX, network
from bench.rig.processes import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer("haproxy"),
    pytest.mark.peer("postgresql"),
    pytest.mark.timeout(1800),
]


DOUBLED = r"scale: lost=0 doubled=[1-9]\d*"
KILLS = ("kills", "--trials", "1", "--images", "200")
PARTITIONS = ("partitions", "--partitions", "10")
SEEDS = ("3", "4", "5")  # of which the first cuts off the stream's follower, too


def scale(part: str, *arguments: str) -> tuple[int, str]:
    """One part: its exit code and its output."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--only", part, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def said_of(part: str, *arguments: str) -> str:
    """The last line of the first round that fails: on a busy machine nothing may happen where the fault would show."""
    for seed in SEEDS:
        code, output = scale(part, "--seed", seed, *arguments)
        if code:
            return output.splitlines()[-1]
    return output


def test_nothing_is_lost_or_doubled_whichever_process_is_killed() -> None:
    code, output = scale(*KILLS)
    assert code == 0, output
    assert output.splitlines()[-1] == "scale: lost=0 doubled=0"


@pytest.mark.parametrize("broken", ["union"])
def test_the_kill_test_notices_what_is_broken(broken: str) -> None:
    assert re.fullmatch(DOUBLED, said_of(*KILLS, "--break-it", broken))


@pytest.mark.peer("namespaces")
def test_nothing_is_lost_or_doubled_whichever_host_is_cut_off() -> None:
    code, output = scale(*PARTITIONS, "--seed", SEEDS[0])
    assert code == 0, output
    assert output.splitlines()[-1] == "scale: lost=0 doubled=0"


@pytest.mark.peer("namespaces")
@pytest.mark.parametrize("broken", ["follower"])
def test_the_partitions_notice_what_is_broken(broken: str) -> None:
    assert re.fullmatch(DOUBLED, said_of(*PARTITIONS, "--break-it", broken))


@pytest.mark.peer("namespaces")
def test_nobody_waits_for_ever_for_a_host_that_is_cut_off() -> None:
    code, output = scale("noticing")
    assert code == 0, output
    assert "not at all" not in output


@pytest.mark.peer("namespaces")
def test_a_process_that_was_killed_leaves_no_hosts_behind() -> None:
    making = (
        "import os, bench.rig.network as n; made = n.network(['one', 'two']); made.__enter__(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.Popen([sys.executable, "-c", making], cwd=ROOT)
    killed.wait()
    assert len(left_by(killed.pid)) == 3
    with network(["one"]):
        assert not left_by(killed.pid)
        assert left_by(os.getpid())
    assert not left_by(os.getpid())


def left_by(pid: int) -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"{PREFIX}{pid}-*")]
