"""On PYTHONPATH: the wall clock is off by the seconds in the file $STEPPED_CLOCK; the monotonic one is not."""

import os
import threading
import time
from pathlib import Path

import time_machine

POLL_S = 0.02


def _follow(path: Path) -> None:
    current, travel = 0.0, None
    while True:
        step = float(path.read_text())
        if step != current:
            if travel is not None:
                travel.stop()
            travel = time_machine.travel(time.time() + step, tick=True)
            travel.start()
            current = step
        time.sleep(POLL_S)


threading.Thread(target=_follow, args=(Path(os.environ["STEPPED_CLOCK"]),), daemon=True, name="stepped clock").start()
