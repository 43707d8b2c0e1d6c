"""The gateway, with a bug whose error names a patient."""

from typing import Any

import client
from gateway.cli import commands
from gateway.collector import SeriesCollector
from models import Instance


def broken(self: SeriesCollector, instance: Instance, now: float) -> Any:
    raise ValueError(f"cannot count {instance.attributes}")


SeriesCollector.observe = broken  # type: ignore[method-assign]
if __name__ == "__main__":
    commands.command_line(client.run)()
