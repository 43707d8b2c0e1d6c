"""Hosts with addresses of their own: network namespaces on a bridge, and links between them that drop packets.

Needs root, Debian's iproute2 and nftables. A dropped packet is answered by nobody: no RST, no FIN, no ICMP.
"""

import ctypes
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

IP, NFT = (shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("ip", "nft"))
PREFIX = "series-gateway-"  # of namespaces; the process's id follows
NAMESPACES = Path("/run/netns")  # ip-netns(8)
SUBNET = "10.77.0"
CLONE_NEWNET = 0x40000000  # sched.h
FILTER = """
table inet cut {
    set from { type ipv4_addr; }
    chain input { type filter hook input priority 0; ip saddr @from drop; }
}
"""


def missing() -> str | None:
    """Why no hosts can be made here; None where they can."""
    if IP is None or NFT is None:
        return "iproute2 or nftables is not installed (Debian: apt-get install iproute2 nftables)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    done = subprocess.run([IP, "netns", "add", f"{PREFIX}{os.getpid()}-try"], check=False, capture_output=True)
    if done.returncode == 0:
        subprocess.run([IP, "netns", "delete", f"{PREFIX}{os.getpid()}-try"], check=False)
    return "network namespaces cannot be made here" if done.returncode else None


class Network:
    """Hosts that reach each other; `inside` one, a thread opens its sockets and starts its processes there."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._addresses = {host: f"{SUBNET}.{n}" for n, host in enumerate(hosts, 1)}
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def address(self, host: str) -> str:
        return self._addresses[host]

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread, the threads and the processes that it starts meanwhile are on that host."""
        with open("/proc/thread-self/ns/net") as here:
            self.enter(host)
            try:
                yield
            finally:
                _enter(here.fileno())

    def enter(self, host: str) -> None:
        """As `inside`, for good."""
        with (NAMESPACES / _namespace(host)).open() as there:
            _enter(there.fileno())

    def drop(self, sender: str, receiver: str) -> None:
        """From now on nothing of the one reaches the other. Nested drops end with the last `pass_`."""
        with self._lock:
            self._dropped[sender, receiver] += 1
            if self._dropped[sender, receiver] == 1:
                self._set("add", sender, receiver)

    def pass_(self, sender: str, receiver: str) -> None:
        """End one `drop`."""
        with self._lock:
            self._dropped[sender, receiver] -= 1
            if self._dropped[sender, receiver] == 0:
                self._set("delete", sender, receiver)

    def _set(self, verb: str, sender: str, receiver: str) -> None:
        rule = ["element", "inet", "cut", "from", f"{{ {self.address(sender)} }}"]
        _run(IP, "netns", "exec", _namespace(receiver), str(NFT), verb, *rule)

    def move(self, owner: str, giver: str, taker: str) -> None:
        """The address of one host goes from one to another, and all are told, as gratuitous ARP does."""
        address = self.address(owner)
        _run(IP, "-n", _namespace(giver), "address", "delete", f"{address}/24", "dev", "eth0")
        _run(IP, "-n", _namespace(taker), "address", "add", f"{address}/24", "dev", "eth0")
        for host in self._addresses:
            _run(IP, "-n", _namespace(host), "neighbour", "flush", "to", address)

    def connections(self, host: str, peer: str) -> int:
        """How many established TCP connections that host's system believes to have with an address of another."""
        wanted = ["ss", "-Htn", "state", "established", "dst", self.address(peer)]
        return len(_run(IP, "netns", "exec", _namespace(host), *wanted).splitlines())

    def make(self) -> None:
        _run(IP, "netns", "add", _namespace("switch"))
        _run(IP, "-n", _namespace("switch"), "link", "add", "bridge", "up", "type", "bridge")
        for n, (host, address) in enumerate(self._addresses.items(), 1):
            name = _namespace(host)
            _run(IP, "netns", "add", name)
            pair = ["type", "veth", "peer", "name", f"port{n}", "netns", _namespace("switch")]
            _run(IP, "link", "add", "eth0", "netns", name, *pair)
            _run(IP, "-n", _namespace("switch"), "link", "set", f"port{n}", "master", "bridge", "up")
            _run(IP, "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run(IP, "-n", name, "link", "set", device, "up")
            _run(IP, "netns", "exec", name, str(NFT), "-f", "-", given=FILTER)


@contextmanager
def network(hosts: Sequence[str]) -> Iterator[Network]:
    """Hosts, removed at the end; so are those of processes that were killed before they could."""
    _remove(lambda pid: not Path(f"/proc/{pid}").exists())
    made = Network(hosts)
    try:
        made.make()
        yield made
    finally:
        _remove(lambda pid: pid == str(os.getpid()))


def _remove(ours: Callable[[str], bool]) -> None:
    for path in NAMESPACES.glob(f"{PREFIX}*"):
        if ours(path.name.removeprefix(PREFIX).partition("-")[0]):
            subprocess.run([str(IP), "netns", "delete", path.name], check=False)


def _namespace(host: str) -> str:
    return f"{PREFIX}{os.getpid()}-{host}"


def _enter(fd: int) -> None:
    """setns(2) of this thread: os.setns is there since Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _run(program: str | None, *arguments: str, given: str | None = None) -> str:
    done = subprocess.run(
        [str(program), *arguments],
        input=given,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout.strip()}")
    return done.stdout
