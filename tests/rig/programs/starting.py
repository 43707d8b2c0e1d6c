"""Workers that say `up` before they have a handler for signals, and then do nothing."""

import os
import sys
import time

from common.settings import GatewaySettings
from gateway.cli.workers import supervise


def work(settings: GatewaySettings, number: int) -> None:
    """Stands in the place of a worker."""
    os.write(1, b"up\n")
    time.sleep(600)


if __name__ == "__main__":
    sys.exit(supervise(GatewaySettings(scp_port=0, workers=2), work))
