"""What `check` says of this machine: ports, and a file that may not be lost.

Of the file: where its folder lies, how full it is, how fast, and who may read it.
"""

import os
import re
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from common.at_rest import read_only
from console.findings import Finding, failed, ok, warning

FSYNCS = 15
SLOW_FSYNC_S = 0.02
FORGETS = {"tmpfs": "memory, and gone after a reboot", "ramfs": "memory, and gone after a reboot"}
FORGETS |= {"overlay": "a container's own layer, and gone with the container", "aufs": "a container's own layer"}
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs", "lustre"}
AS_ITS_USER = "Run this as the user whom it runs as."
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
LOCAL_DISK = "Name a file on a local disk (in a container: on a volume)"


def folder(what: str, setting: str, path: Path, min_free_bytes: int) -> list[Finding]:
    """The folder that a file is in, or will be made in. `setting` names the file."""
    parent = path.absolute().parent
    if hidden(path):
        return [failed(what, f"{path} cannot be read: Permission denied", AS_ITS_USER)]
    if not parent.is_dir():
        return [failed(what, f"{parent} does not exist", f"Make the folder, or change {setting}.")]
    try:
        seconds = fsync_s(parent)
    except OSError as error:
        cure = f"Let the user that this runs as write {parent}, or change {setting}."
        return [failed(what, f"{parent} cannot be written: {error.strerror}", cure)]
    return [_free(what, parent, min_free_bytes), speed(what, parent, seconds), _kind(what, setting, parent)]


def fsync_s(parent: Path, times: int = FSYNCS) -> float:
    """Median time of writing a page to a file of its own in a folder, and waiting until it is on the disk."""
    with tempfile.NamedTemporaryFile(dir=parent, prefix=".check-") as file:
        measured = []
        for _ in range(times):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            measured.append(time.perf_counter() - began)
    return statistics.median(measured)


def speed(what: str, parent: Path, seconds: float) -> Finding:
    """Whether an fsync is fast enough, and what it means where it is not."""
    told = f"one fsync takes {1000 * seconds:.1f} ms"
    if seconds <= SLOW_FSYNC_S:
        return ok(what, told)
    per_s = f"at most {1 / seconds:.0f} images or reports a second that come one at a time"
    return warning(what, f"{told}: {per_s}", f"Put it on a faster disk than {parent} is on (an SSD, not a network's).")


def _free(what: str, parent: Path, min_free_bytes: int) -> Finding:
    disk = os.statvfs(parent)
    free = disk.f_bavail * disk.f_frsize
    told = f"{parent} is writable, {in_units(free)} free"
    if free >= 4 * min_free_bytes:
        return ok(what, told)
    cure = "Free some space, or put it on another disk."
    if free >= min_free_bytes:
        return warning(what, f"{told}; below {in_units(min_free_bytes)} nothing more is taken in", cure)
    return failed(what, f"{told}, less than {in_units(min_free_bytes)}: nothing is taken in", cure)


def _kind(what: str, setting: str, parent: Path) -> Finding:
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return warning(what, "cannot tell what kind of disk this is", LOCAL_DISK + ".")
    return judged(what, setting, filesystem(parent.resolve(), mounts))


def judged(what: str, setting: str, kind: str) -> Finding:
    """Whether a file system of this kind keeps what it is given."""
    if kind in FORGETS:
        return warning(what, f"{kind}: {FORGETS[kind]}", f"{LOCAL_DISK}: change {setting}.")
    if kind in NETWORK:
        told = f"{kind}: a network's, whose locks and fsync SQLite cannot trust"
        return warning(what, told, f"{LOCAL_DISK}: change {setting}.")
    return ok(what, f"on {kind}")


def filesystem(path: Path, mounts: str) -> str:
    """The kind of file system that holds a path, as /proc/mounts says."""
    found = "unknown"
    longest = -1
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        at = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if path.is_relative_to(at) and len(at) >= longest:  # of two on one point the later one is seen
            longest, found = len(at), kind
    return found


def readable_by_others(what: str, paths: Iterable[Path]) -> list[Finding]:
    """A warning for each file that others on this machine can read."""
    findings = []
    for path in paths:
        if not hidden(path) and path.exists() and path.stat().st_mode & 0o077:
            mode = f"{path.stat().st_mode & 0o777:04o}"
            findings.append(warning(what, f"others on this machine can read {path} ({mode})", f"chmod 600 {path}"))
    return findings


def in_units(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def soundness(what: str, path: Path, cure: str, patience_s: float = 10.0) -> Finding:
    """Whether a SQLite file can be trusted, read beside its owner, who may be writing. `cure` is for one that cannot.

    A file too large to be read through within `patience_s` is taken for sound.
    """
    ends_at = time.monotonic() + patience_s
    try:
        with closing(sqlite3.connect(read_only(path), uri=True, timeout=5)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            connection.set_progress_handler(lambda: time.monotonic() > ends_at, 10_000)
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return unread(what, path, error, cure)
    if said != "ok":
        return failed(what, f"{path} is not a sound database: {str(said).rpartition(chr(10))[2]}", cure)
    return ok(what, f"{path} is sound")


def unread(what: str, path: Path, error: sqlite3.Error, cure: str) -> Finding:
    """What an error says of the file that was read: only two of them that it is not sound."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_INTERRUPT:
            return ok(what, f"{path} was read in part, since it is large, and is sound so far")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return failed(what, f"{path} is not a sound database: {error}", cure)
    return failed(what, f"{path} cannot be read: {error}", AS_ITS_USER)


def hidden(path: Path) -> bool:
    """Whether this user may not even see what is there: in a folder 0700 of another's."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


# --- ports ------------------------------------------------------------------------------------------------------


def bind(what: str, host: str, port: int, change: str) -> Finding:
    """By listening for a moment. `change` names what an operator can change: settings, options."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port)
        with closing(socket.create_server((host, port), family=family)):
            return ok(what, f"{host}:{port} can be bound" if port else "any free one")
    except PermissionError:
        return failed(what, f"{host}:{port}: ports below 1024 are root's", f"Choose one above 1023: change {change}.")
    except socket.gaierror:
        return failed(
            what, f"no address belongs to the name {host}", f"Give an address of this machine: change {change}."
        )
    except OSError as error:
        cure = f"Stop what uses it (`ss -ltnp` shows who; it is none of ours on these files), or change {change}."
        return failed(what, f"{host}:{port} cannot be bound: {os.strerror(error.errno or 0)}", cure)


def address_towards(host: str) -> str:
    """This machine's address on the way to `host`, or its name where there is none. No packet is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except OSError:
        return socket.gethostname()


def proxy(setting: str, *, is_used: bool) -> list[Finding]:
    """Say what becomes of a proxy that the environment names. `setting` decides."""
    named = ", ".join(name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower()))
    if is_used and named:
        return [ok("proxy", f"calls go through the proxy of {named}, which reads what is not https")]
    if is_used:
        cure = f"Name the proxy there, or remove {setting}."
        return [warning("proxy", f"{setting} is true, and none of {', '.join(PROXIES)} is set", cure)]
    return [ok("proxy", f"{named} is set, and not used: {setting}=true would use it")] if named else []
