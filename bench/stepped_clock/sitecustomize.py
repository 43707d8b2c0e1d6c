"""On PYTHONPATH: the wall clock is off by the seconds in the file $STEPPED_CLOCK; the monotonic one is not.

With $STEPPED_CLOCK_PASSES the server takes each step for time that has passed, and not for a clock that was set.
"""

import os
import sys
import threading
import time
from pathlib import Path

import time_machine

POLL_S = 0.02


def _follow(path: Path) -> None:
    current, traveller = 0.0, None
    while True:
        if "STEPPED_CLOCK_PASSES" in os.environ and (leaps := sys.modules.get("storage.leaps")) is not None:
            vars(leaps)["monotonic"] = time.time
        step = float(path.read_text())
        if step != current and traveller is None:
            traveller = time_machine.travel(time.time() + step, tick=True).start()
        elif step != current and traveller is not None:
            traveller.shift(step - current)  # at once: nobody sees the true time between two steps
        current = step
        time.sleep(POLL_S)


threading.Thread(target=_follow, args=(Path(os.environ["STEPPED_CLOCK"]),), daemon=True, name="stepped clock").start()
