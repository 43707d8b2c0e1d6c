"""A gateway that sends itself the signals named by its arguments before its loop has looked at the first of them."""

import asyncio
import os
import signal
import sys
from typing import Any

from common.settings import GatewaySettings
from gateway.cli.process import _until_signalled, run_main


async def run(settings: GatewaySettings, stop: asyncio.Event, *, listen: bool = True, show: Any = None) -> int:
    """Stands in the place of client.run."""
    for name in sys.argv[1:]:
        os.kill(os.getpid(), signal.Signals[name])
    await stop.wait()
    await asyncio.sleep(0.1 if len(sys.argv) == 2 else 3600)  # the drain
    return 7


chosen = GatewaySettings(server_url="http://127.0.0.1:1", allow_any_peer=True)
print(run_main(_until_signalled(chosen, run), chosen))
