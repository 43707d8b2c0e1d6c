"""Asks the gateway beside it: `live` whether it answers, `ready` whether it also takes images. Exit code 0 if so.

Standard library only: `python client.py status` says more, but starts for 0.6 s of CPU where this takes 0.02 s.
"""

import json
import os
import socket
import sys
from pathlib import Path

TIMEOUT_S = 5.0


def main() -> None:
    journal = Path(os.path.realpath(os.environ["GATEWAY_JOURNAL_PATH"]))  # its socket stands beside the file itself
    os.chdir(journal.parent)  # a Unix address holds 107 bytes, a path may be longer
    try:
        status = ask(f"{journal.name}.sock")
    except (OSError, ValueError) as error:
        sys.exit(f"no answer: {error}")
    if "ready" in sys.argv and not status.get("ready"):
        sys.exit(f"not ready: {status.get('reason')}")


def ask(address: str) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.settimeout(TIMEOUT_S)
        gateway.connect(address)
        gateway.sendall(b'{"do": "status"}\n')
        with gateway.makefile() as lines:
            answer: dict[str, object] = json.loads(lines.readline())
    return answer


if __name__ == "__main__":
    main()
