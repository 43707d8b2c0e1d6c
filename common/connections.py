"""TCP connections whose peer vanishes without a word (cut off, switched off, its address moved) are ended.

Without it a system that waits for bytes waits for ever, and one that has sent some for a quarter of an hour.
"""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

PROBE_AFTER_S = 30  # of silence
PROBE_EVERY_S = 10
PROBES = 3  # unanswered
DEAD_AFTER_S = 60  # without an acknowledgement of what was sent, a probe included, and with a window that stays shut

_OPTIONS = {
    "TCP_KEEPIDLE": PROBE_AFTER_S,
    "TCP_KEEPINTVL": PROBE_EVERY_S,
    "TCP_KEEPCNT": PROBES,
    "TCP_USER_TIMEOUT": 1000 * DEAD_AFTER_S,  # Linux, RFC 5482
}
OF_POSTGRESQL = {
    "tcp_keepalives_idle": str(PROBE_AFTER_S),
    "tcp_keepalives_interval": str(PROBE_EVERY_S),
    "tcp_keepalives_count": str(PROBES),
    "tcp_user_timeout": str(1000 * DEAD_AFTER_S),
}
"""The same as settings of a session, for its server's side. On a Unix socket they do nothing."""


def notice_death(sock: Any) -> None:
    """Have the system end a connection whose peer is dead; what a listener accepts inherits it."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def notice_dead_clients() -> None:
    """The same for all that this process listens on: uvicorn shows its listener to nobody. Linux."""
    for listener in _listeners():
        notice_death(listener)


def _listeners() -> Iterator[socket.socket]:
    descriptors: list[str] = []
    with suppress(OSError):  # no Linux, or not ours to read
        descriptors = os.listdir("/proc/self/fd")
    for fd in descriptors:
        with suppress(OSError):  # closed meanwhile
            if not stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield sock
