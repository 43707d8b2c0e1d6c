"""The gateway's process: what signals do, in a process of its own."""

import os
import signal
import subprocess
import sys

import pytest

from bench.rig.processes import ROOT

PROGRAM = """
import asyncio, os, signal, sys
from common.settings import GatewaySettings
from gateway.cli.process import _until_signalled, run_main

async def run(settings, stop, *, listen=True, show=None):
    for name in sys.argv[1:]:  # before the loop has looked at the first one
        os.kill(os.getpid(), signal.Signals[name])
    await stop.wait()
    await asyncio.sleep(0.1 if len(sys.argv) == 2 else 3600)  # the drain
    return 7

settings = GatewaySettings(server_url="http://127.0.0.1:1", allow_any_peer=True)
print(run_main(_until_signalled(settings, run), settings))
"""


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
    command = [sys.executable, "-c", PROGRAM, *signals]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ends_by, done.stderr
    assert done.stdout.split() == ([] if ends_by else ["7"])
