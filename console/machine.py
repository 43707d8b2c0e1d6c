"""The checks of this machine: ports, proxies, and a file that must not be lost.

For the file they check the kind of its disk, free space, speed, who can read it, and that SQLite can trust it.
"""

import os
import re
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from common.at_rest import read_only
from console.findings import Finding, failed, ok, warning

FSYNCS = 15  # how many are measured
SLOW_FSYNC_S = 0.02  # a median above this is a warning
FASTEST_FSYNC_S = 15e-6  # a median below this is a warning; memory needs 6 µs, the fastest disks more than 20
FORGETS = {"tmpfs": "memory, and gone after a reboot", "ramfs": "memory, and gone after a reboot"}
FORGETS |= {"overlay": "a container's own layer, and gone with the container", "aufs": "a container's own layer"}
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "ceph", "glusterfs", "lustre", "afs"}
NETWORK |= {"beegfs", "gpfs", "orangefs", "pvfs2", "davfs", "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.rclone"}
LOOSE = {"vfat", "exfat", "msdos"}
UNSYNCED = {"nobarrier", "barrier=0", "volatile"}  # options of mounts with which fsync does not reach the disk
AS_ITS_USER = "Run this command as the user that the program runs as."
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
LOCAL_DISK = "Use a file on a local disk (in a container: on a volume)"


def folder(what: str, setting: str, path: Path, min_free_bytes: int) -> list[Finding]:
    """Check the folder of a file, which need not exist yet. `setting` is the setting that names the file."""
    parent = path.absolute().parent
    if hidden(path):
        return [failed(what, f"{path} cannot be read: Permission denied", AS_ITS_USER)]
    if not parent.is_dir():
        return [failed(what, f"{parent} does not exist", f"Make the folder, or change {setting}.")]
    try:
        seconds = fsync_s(parent)
    except OSError as error:
        cure = f"Let the user that this runs as write to {parent}, or change {setting}."
        return [failed(what, f"{parent} cannot be written: {error.strerror}", cure)]
    return [_free(what, parent, min_free_bytes), speed(what, parent, seconds), _kind(what, setting, parent)]


def fsync_s(parent: Path, times: int = FSYNCS) -> float:
    """Measure how long it takes to write 4 KiB to a new file in a folder and to sync it to disk; return the median."""
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
    """Judge the time of one fsync, and say what a slow one means."""
    if seconds < FASTEST_FSYNC_S:
        told = f"one fsync takes {1e6 * seconds:.0f} µs, faster than any disk: a power cut loses what was acknowledged"
        cure = f"Find out what ignores fsync below {parent} (libeatmydata, a disk in memory), and do without it."
        return warning(what, told, cure)
    told = f"one fsync takes {1000 * seconds:.1f} ms"
    if seconds <= SLOW_FSYNC_S:
        return ok(what, told)
    per_s = f"at most {1 / seconds:.0f} images or reports a second if they come one at a time"
    return warning(what, f"{told}: {per_s}", f"Use a faster disk than that of {parent} (an SSD, not a network drive).")


def _free(what: str, parent: Path, min_free_bytes: int) -> Finding:
    disk = os.statvfs(parent)
    free = disk.f_bavail * disk.f_frsize
    told = f"{parent} is writable, {in_units(free)} free"
    if free >= 4 * min_free_bytes:
        return ok(what, told)
    cure = "Free some space, or put it on another disk."
    if free >= min_free_bytes:
        return warning(what, f"{told}; below {in_units(min_free_bytes)} nothing more is accepted", cure)
    return failed(what, f"{told}, less than {in_units(min_free_bytes)}: nothing is accepted", cure)


def _kind(what: str, setting: str, parent: Path) -> Finding:
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return warning(what, "the kind of this disk cannot be determined", LOCAL_DISK + ".")
    return judged(what, setting, *filesystem(parent.resolve(), mounts))


def judged(what: str, setting: str, kind: str, options: Collection[str] = ()) -> Finding:
    """Judge if a file system of this kind, mounted with these options, keeps what is written to it."""
    problem = _problem(kind, options)
    return (
        warning(what, f"{kind}: {problem}", f"{LOCAL_DISK}: change {setting}.") if problem else ok(what, f"on {kind}")
    )


def _problem(kind: str, options: Collection[str]) -> str | None:
    if kind in FORGETS:
        return FORGETS[kind]
    if kind in NETWORK:
        return "a network drive, whose locks and fsync SQLite cannot trust"
    if kind in LOOSE:
        return "it may damage files in a power cut, and cannot keep them from other users"
    if unsynced := sorted(UNSYNCED.intersection(options)):
        return f"mounted with {', '.join(unsynced)}, so a power cut loses what was acknowledged"
    if kind.partition(".")[0] in ("fuse", "fuseblk"):
        return "a file system of a program, whose locks, fsync and shared memory SQLite cannot trust"
    return None


def filesystem(path: Path, mounts: str) -> tuple[str, list[str]]:
    """Return the kind and the options of the file system that holds a path, by the text of /proc/mounts."""
    found: tuple[str, list[str]] = "unknown", []
    longest = -1
    for line in mounts.splitlines():
        _, point, kind, options, *_ = line.split(" ")
        at = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if path.is_relative_to(at) and len(at) >= longest:  # of two mounts on one point the later one is visible
            longest, found = len(at), (kind, options.split(","))
    return found


def readable_by_others(what: str, paths: Iterable[Path]) -> list[Finding]:
    """Return a warning for each file that other users of this machine can read."""
    findings = []
    for path in paths:
        if not hidden(path) and path.exists() and path.stat().st_mode & 0o077:
            mode = f"{path.stat().st_mode & 0o777:04o}"
            findings.append(warning(what, f"other users can read {path} ({mode})", f"chmod 600 {path}"))
    return findings


def in_units(size: int) -> str:
    """Format a number of bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def soundness(what: str, path: Path, cure: str, patience_s: float = 10.0) -> Finding:
    """Check that a SQLite file is not corrupt. Another process may be writing to it.

    `cure` says what to do if it is corrupt. A file that cannot be read completely within `patience_s` counts as sound.
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
    """Return what a SQLite error says about the file. Only two kinds of errors mean that it is corrupt."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_INTERRUPT:
            return ok(what, f"{path} is large; the part that was read is sound")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return failed(what, f"{path} is not a sound database: {error}", cure)
    return failed(what, f"{path} cannot be read: {error}", AS_ITS_USER)


def hidden(path: Path) -> bool:
    """Tell if this user may not even look into the file's folder, such as another user's with mode 0700."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


# --- ports ------------------------------------------------------------------------------------------------------


def bind(what: str, host: str, port: int, change: str) -> Finding:
    """Check that a port can be bound, by listening for a moment. `change` names the settings or options to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port)
        with closing(socket.create_server((host, port), family=family)):
            return ok(what, f"{host}:{port} can be bound" if port else "any free port")
    except PermissionError:
        return failed(
            what, f"{host}:{port}: only root may use ports below 1024", f"Choose a higher one: change {change}."
        )
    except socket.gaierror:
        return failed(
            what, f"no address belongs to the name {host}", f"Use an address of this machine: change {change}."
        )
    except OSError as error:
        cure = f"Stop the program that uses it (`ss -ltnp` shows which one), or change {change}."
        return failed(what, f"{host}:{port} cannot be bound: {os.strerror(error.errno or 0)}", cure)


def address_towards(host: str) -> str:
    """Return this machine's address on the way to `host`, or its name if there is none. No packet is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except OSError:
        return socket.gethostname()


def proxy(setting: str, *, is_used: bool) -> list[Finding]:
    """Say if a proxy that the environment names is used. `setting` is the setting that decides it."""
    named = ", ".join(name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower()))
    if is_used and named:
        return [ok("proxy", f"requests go through the proxy of {named}, which can read them unless they are https")]
    if is_used:
        cure = f"Set one of them to the proxy, or remove {setting}."
        return [warning("proxy", f"{setting} is true, but none of {', '.join(PROXIES)} is set", cure)]
    return [ok("proxy", f"{named} is set but not used; {setting}=true would use it")] if named else []
