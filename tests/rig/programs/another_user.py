"""Prints, as a user who is not root, what is said of a file in a folder that this user may not read."""

import os
import sys
from pathlib import Path

from console import machine

if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
path = Path(sys.argv[1])
assert machine.hidden(path)
print(machine.folder("x", "GATEWAY_JOURNAL_PATH", path, 0), machine.readable_by_others("x", [path]))
