"""Debian's HAProxy in TCP mode: in front of gateways, or of servers that say whether they are ready."""

import csv
import shutil
import socket
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from bench.rig.processes import Process

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
HAPROXY_MISSING = "HAProxy is not installed (Debian: apt-get install haproxy)"

COMMON = """
global
    stats socket {folder}/haproxy.sock mode 600
defaults
    mode tcp
    balance leastconn
    retries 3
    option redispatch 1
    timeout connect 2s
    timeout check 5s
    timeout client 1h
    timeout server 1h
    option tcpka
    clitcpka-idle 30s
    clitcpka-intvl 10s
    clitcpka-cnt 3
    srvtcpka-idle 30s
    srvtcpka-intvl 10s
    srvtcpka-cnt 3
    default-server check inter 200ms fall 2 rise 1 tcp-ut 60s
"""
OF_GATEWAYS = """    default-server on-marked-down shutdown-sessions
"""
OF_SERVERS = """    option httpchk GET /health/ready
    http-check expect status 200
"""


def listen(name: str, bind: str, members: Iterable[tuple[str, str]], more: str = "") -> str:
    """A section of the configuration: a port, and the names and addresses of those behind it."""
    lines = [f"    server {member} {address}\n" for member, address in members]
    return f"listen {name}\n    bind {bind} tcp-ut 60s\n{more}{''.join(lines)}"


def haproxy_process(folder: Path, sections: Sequence[str], listeners: Sequence[int] = ()) -> Process:
    """HAProxy with these sections, and listeners of ours that it takes over."""
    path = folder / "haproxy.cfg"
    path.write_text(COMMON.format(folder=folder) + "".join(sections))
    return Process("haproxy", [str(HAPROXY), "-db", "-f", str(path)], folder, listeners)


def redispatched(folder: Path) -> int:
    """Connections that it took to another member than the one it had chosen."""
    with socket.socket(socket.AF_UNIX) as stats:
        stats.connect(f"{folder}/haproxy.sock")
        stats.sendall(b"show stat\n")
        answer = stats.makefile().read().removeprefix("# ")
    return sum(int(row["wredis"]) for row in csv.DictReader(StringIO(answer)) if row["svname"] == "BACKEND")
