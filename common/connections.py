"""End TCP connections whose peer has vanished: its power failed, a cable was cut, or its address moved.

Without these options a process that waits for bytes waits for ever, and one that has sent some waits 15 minutes.
"""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

PROBE_AFTER_S = 30  # silence after which the system sends the first keep-alive probe
PROBE_EVERY_S = 10  # time between two probes
PROBES = 3  # unanswered probes after which the connection is ended
DEAD_AFTER_S = 60  # longest wait for an acknowledgement of sent bytes or probes, or for a closed window to open

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
"""The same bounds as PostgreSQL session settings, for its side of a connection. They have no effect on Unix sockets."""


def notice_death(sock: Any) -> None:
    """Make the system end a connection whose peer is dead. Connections accepted by a listener inherit this."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def notice_dead_clients() -> None:
    """Do the same for every listening socket of this process, since uvicorn does not expose its own. Linux only."""
    for listener in _listeners():
        notice_death(listener)


def _listeners() -> Iterator[socket.socket]:
    descriptors: list[str] = []
    with suppress(OSError):  # not Linux, or /proc may not be read
        descriptors = os.listdir("/proc/self/fd")
    for fd in descriptors:
        with suppress(OSError):  # it was closed in the meantime
            if not stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield sock
