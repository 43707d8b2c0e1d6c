"""`make attacks`: hostile peers against a real gateway, while a well-behaved sender on the same port keeps working.

For each attack: what came back, the gateway's peak memory, the good sender's worst delay for a C-STORE, and whether
connections and memory are back afterwards. The gateway is one process for the whole run; it survives an attack
if it still runs, every image of the good sender was answered 0x0000, and nothing stays behind.
"""

import argparse
import contextlib
import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import psutil
import trustme
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.presentation import build_context
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.rig.processes import ROOT, gateway, server
from bench.rig.progress import bar
from bench.rig.senders import associate_rq, feed, pure_scu, synthetic_image, synthetic_series
from dicom.header import HeaderError, read_instance
from dicom.upper_layer import Acceptor, Limits
from models import SeriesReport

SETTINGS = {
    "idle_timeout_s": 1,
    "associate_timeout_s": 2,
    "pdu_timeout_s": 2,
    "association_idle_timeout_s": 30,
    "min_free_bytes": 0,
    "max_connections_per_peer": 100,
}
ATTACK_S = 3.0
BACK_S = 15.0
MEMORY_MARGIN_MIB = 64
ATTACKER = "127.0.0.2"
"""Another address than the good sender's; attacks named "same address" use that one."""


# --- bytes ----------------------------------------------------------------------------------------------------


def pdu(kind: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBL", kind, 0, length) + body


def p_data(context_id: int, header: int, fragment: bytes) -> bytes:
    return pdu(4, len(fragment) + 6, struct.pack(">LBB", len(fragment) + 2, context_id, header) + fragment)


def element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(value)) + value


def store_rq(sop_instance_uid: str) -> bytes:
    """A C-STORE-RQ's command set (PS3.7 §9.3.1.1)."""
    body = element(0x0002, CTImageStorage.encode()) + element(0x0100, b"\x01\0") + element(0x0110, b"\x07\0")
    body += element(0x0700, b"\0\0") + element(0x0800, b"\x01\0") + element(0x1000, sop_instance_uid.encode())
    return element(0, struct.pack("<L", len(body))) + body


def encoded(**changes: str) -> tuple[str, bytes]:
    """A small image's SOP Instance UID and bytes, explicit VR little endian."""
    (ds,) = synthetic_series(1)
    for keyword, value in changes.items():
        vr = "LT" if keyword == "PatientName" else "UI"  # LT is written as it is
        ds[keyword] = DataElement(keyword, vr, value, validation_mode=IGNORE)
    buffer = BytesIO()
    fp = DicomIO(buffer)
    fp.is_implicit_VR, fp.is_little_endian = False, True
    write_dataset(fp, ds)
    return str(ds.SOPInstanceUID), buffer.getvalue()


def store(data_set: bytes, sop_instance_uid: str) -> bytes:
    parts = [data_set[n : n + 65536] for n in range(0, len(data_set), 65536)] or [b""]
    data = b"".join(p_data(1, 2 if n == len(parts) - 1 else 0, part) for n, part in enumerate(parts))
    return p_data(1, 3, store_rq(sop_instance_uid)) + data


# --- the target and the good sender ---------------------------------------------------------------------------


@dataclass
class Target:
    """The gateway under attack."""

    port: int
    process: psutil.Process
    tls: ssl.SSLContext | None = None

    def connect(self, source: str = ATTACKER) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10, (source, 0))

    def associated(self, contexts: list[tuple[str, str]] | None = None) -> socket.socket:
        """A connection with an association: context 1 is CT in explicit VR little endian unless told otherwise."""
        sock = self.connect()
        chosen = [build_context(*pair) for pair in contexts or [(CTImageStorage, ExplicitVRLittleEndian)]]
        sock.sendall(associate_rq(chosen))
        read_pdu(sock)
        return sock

    def rss_mib(self) -> float:
        return float(self.process.memory_info().rss) / 2**20

    def connections(self) -> int:
        return sum(c.laddr.port == self.port and c.status == "ESTABLISHED" for c in self.process.net_connections("tcp"))


def read_pdu(sock: socket.socket) -> bytes:
    """One PDU, empty where the connection ends."""
    head = _exactly(sock, 6)
    return head + _exactly(sock, int.from_bytes(head[2:], "big")) if head else b""


def _exactly(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            return b""
        data += part
    return data


def answer(sock: socket.socket, seconds: float = 10) -> str:
    """What the gateway says, in a word."""
    sock.settimeout(seconds)
    try:
        got = read_pdu(sock)
    except TimeoutError:
        return "nothing"
    except OSError:
        return "closed"
    if not got:
        return "closed"
    if got[0] == 4:
        at = got.find(b"\0\0\x00\x09\x02\0\0\0")
        return f"status 0x{int.from_bytes(got[at + 8 : at + 10], 'little'):04X}"
    return {2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 6: "A-RELEASE-RP", 7: "A-ABORT"}.get(got[0], f"PDU {got[0]}")


class GoodSender:
    """Sends images over one association after another until it is stopped."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stop = threading.Event()
        self.sent = 0
        self.failed: list[str] = []
        self.worst_s = 0.0

    @contextmanager
    def working(self) -> Iterator["GoodSender"]:
        thread = threading.Thread(target=self._run, name="good sender")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        ae = AE("GOOD")
        ae.acse_timeout = ae.dimse_timeout = 20
        tls = {"tls_args": (self._target.tls, "localhost")} if self._target.tls else {}
        study, series = synthetic_series(1)[0].StudyInstanceUID, synthetic_series(1)[0].SeriesInstanceUID
        while not self._stop.is_set():
            began = time.monotonic()
            contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
            assoc = pure_scu(ae.associate("127.0.0.1", self._target.port, contexts, **tls))  # type: ignore[arg-type]
            if not assoc.is_established:
                self.failed.append("no association")
                time.sleep(0.1)
                continue
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            for _ in range(10):
                began = time.monotonic()
                status = assoc.send_c_store(synthetic_image(study, series, f"{series}.{self.sent}"[-64:])).get("Status")
                self.worst_s = max(self.worst_s, time.monotonic() - began)
                self.sent += 1
                if status != 0:
                    self.failed.append(f"status {status}")
                    break
            if assoc.is_established:
                assoc.release()


# --- attacks: each returns what was answered --------------------------------------------------------------------

Attack = Callable[[Target, random.Random], str]


def announced_lengths(target: Target, rng: random.Random) -> str:
    """A PDU header that announces far more than comes, of every PDU type and many lengths, before any association."""
    seen = set()
    for kind in range(9):
        for length in (0, 1, 3, 5, 2**16, 2**18 + 1, 2**24, 2**31, 2**32 - 1):
            with target.connect() as sock:
                sock.sendall(pdu(kind, length, bytes(100)))
                seen.add(answer(sock, 4))
    return ", ".join(sorted(seen))


def announced_4_gib_and_sent(target: Target, rng: random.Random) -> str:
    """0xFFFFFFFF bytes announced before any association, and 64 MiB of them sent."""
    with target.connect() as sock, contextlib.suppress(OSError):
        sock.sendall(pdu(1, 0xFFFFFFFF))
        for _ in range(64):
            sock.sendall(bytes(2**20))
        return answer(sock)
    return "closed"


def p_data_of_4_gib(target: Target, rng: random.Random) -> str:
    with target.associated() as sock:
        sock.sendall(pdu(4, 0xFFFFFFFF))
        return answer(sock)


def silent(source: str) -> Attack:
    def attack(target: Target, rng: random.Random) -> str:
        with ExitStack() as stack:
            for _ in range(600):
                stack.enter_context(target.connect(source))
            time.sleep(ATTACK_S)
            return f"{target.connections()} of 600 left after {ATTACK_S:g} s"

    attack.__doc__ = f"600 connections that say nothing, from {source}."
    return attack


def health_probes(target: Target, rng: random.Random) -> str:
    """Connect and close, as TCP health probes do, 2000 times."""
    for _ in range(2000):
        target.connect().close()
    return "-"


def slow_loris_request(target: Target, rng: random.Random) -> str:
    """An A-ASSOCIATE-RQ that trickles, over 20 connections."""
    return _trickle([target.connect() for _ in range(20)], associate_rq())


def slow_loris_pdu(target: Target, rng: random.Random) -> str:
    """A P-DATA-TF that trickles, over 20 associations."""
    uid, data = encoded()
    return _trickle([target.associated() for _ in range(20)], store(data, uid))


def _trickle(socks: list[socket.socket], data: bytes) -> str:
    with ExitStack() as stack:
        for sock in socks:
            stack.enter_context(sock)
        deadline = time.monotonic() + ATTACK_S
        for at in range(len(data)):
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(data[at : at + 1])
            time.sleep(0.05)
            if time.monotonic() > deadline:
                break
        return ", ".join(sorted({answer(sock, 1) for sock in socks}))


def pipelined(target: Target, rng: random.Random) -> str:
    """500 C-STOREs sent without waiting for an answer."""
    uid, data = encoded()
    with target.associated() as sock:
        writer = threading.Thread(target=lambda: sock.sendall(store(data, uid) * 500))
        writer.start()
        statuses = {answer(sock) for _ in range(500)}
        writer.join()
        return ", ".join(sorted(statuses))


def pipelined_unread(target: Target, rng: random.Random) -> str:
    """C-STOREs without end from a peer that never reads the answers."""
    uid, data = encoded()
    block = store(data, uid) * 200
    sent = 0
    with target.associated() as sock:
        sock.settimeout(ATTACK_S)
        with contextlib.suppress(OSError):
            deadline = time.monotonic() + ATTACK_S
            while time.monotonic() < deadline:
                sent += sock.send(block)
    return f"took {sent / 2**20:.0f} MiB"


def one_byte_fragments(target: Target, rng: random.Random) -> str:
    """A data set in PDVs of one byte each."""
    uid, data = encoded()
    with target.associated() as sock:
        sock.sendall(p_data(1, 3, store_rq(uid)))
        last = len(data) - 1
        sock.sendall(b"".join(p_data(1, 2 if n == last else 0, data[n : n + 1]) for n in range(len(data))))
        return answer(sock)


def empty_fragments(target: Target, rng: random.Random) -> str:
    """A hundred thousand empty PDVs."""
    uid, data = encoded()
    with target.associated() as sock:
        sock.sendall(p_data(1, 3, store_rq(uid)) + p_data(1, 0, b"") * 100_000 + p_data(1, 2, data))
        return answer(sock)


def endless_command(target: Target, rng: random.Random) -> str:
    """A command set of 64 MiB."""
    with target.associated() as sock, contextlib.suppress(OSError):
        for _ in range(1024):
            sock.sendall(p_data(1, 1, bytes(65536)))
        return answer(sock)
    return "closed"


def out_of_order(target: Target, rng: random.Random) -> str:
    """Data before a command, a command within data, a context that was never proposed."""
    uid, data = encoded()
    command = p_data(1, 3, store_rq(uid))
    seen = []
    for said in (p_data(1, 2, data), command + command, p_data(99, 3, store_rq(uid)), p_data(1, 3, b"\0" * 11)):
        with target.associated() as sock:
            sock.sendall(said)
            seen.append(answer(sock))
    return ", ".join(sorted(set(seen)))


def countless_items(target: Target, rng: random.Random) -> str:
    """100,000 presentation contexts, transfer syntaxes and user items in an A-ASSOCIATE-RQ."""
    seen = set()
    for item in (0x20, 0x40, 0x50, 0x51, 0x21):
        for size in (60_000, 100_000):
            body = associate_rq()[6:] + bytes([item, 0, 0, 0]) * size
            with target.connect() as sock, contextlib.suppress(OSError):
                sock.sendall(pdu(1, len(body), body))
                seen.add(answer(sock))
    return ", ".join(sorted(seen))


def odd_titles(target: Target, rng: random.Random) -> str:
    """AE titles of control characters, backslashes and bytes beyond ASCII."""
    seen = set()
    for title in (b"\0" * 16, b"\\" * 16, b"\xff" * 16, b" " * 16, b"\x1b[31m\n" + b"A" * 9, b"../../etc/passwd"):
        rq = associate_rq()
        with target.connect() as sock:
            sock.sendall(rq[:10] + title + title + rq[42:])
            seen.add(answer(sock))
    return ", ".join(sorted(seen))


def deflate_bomb(target: Target, rng: random.Random) -> str:
    """1 GiB of zeros, deflated to about 1 MB, as a private element before the UIDs."""
    uid, data = encoded()
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = compressor.compress(struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 2**30))
    for _ in range(1024):
        bomb += compressor.compress(bytes(2**20))
    bomb += compressor.compress(data) + compressor.flush()
    with target.associated([(CTImageStorage, DeflatedExplicitVRLittleEndian)]) as sock:
        sock.sendall(store(bomb, uid))
        return answer(sock)


def deep_nesting(target: Target, rng: random.Random) -> str:
    """Sequences nested 100,000 deep, of undefined length."""
    uid, data = encoded()
    down = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with target.associated() as sock:
        sock.sendall(store(down * 40_000 + data, uid))
        return answer(sock)


def delimiters_at_depth(target: Target, rng: random.Random) -> str:
    """60,000 items open at once, and a million delimiters and bare items that close, or do not close, one of them."""
    uid, data = encoded()
    opened, item_end, sequence_end = (
        struct.pack("<HHL", 0xFFFE, number, length)
        for number, length in ((0xE000, 2**32 - 1), (0xE00D, 0), (0xE0DD, 0))
    )
    seen = set()
    for closing in (item_end, sequence_end, opened + item_end, opened + sequence_end):
        with target.associated() as sock:
            sock.sendall(store(opened * 60_000 + closing * (2_000_000 // len(closing)) + data, uid))
            seen.add(answer(sock, 30))
    return ", ".join(sorted(seen))


def deflated_elements(target: Target, rng: random.Random) -> str:
    """A data set of 8 million empty items, deflated to some 100 kB."""
    uid, data = encoded()
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = compressor.compress(data)
    for _ in range(64):
        bomb += compressor.compress(struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 2**17)
    bomb += compressor.flush()
    with target.associated([(CTImageStorage, DeflatedExplicitVRLittleEndian)]) as sock:
        sock.sendall(store(bomb, uid))
        return answer(sock, 30)


def odd_uids(target: Target, rng: random.Random) -> str:
    """UIDs like paths, of several values, far too long, with NUL and SQL in them."""
    seen = set()
    for uid in ("../../evil", "1.2\\1.3", "1." * 5000, "1.2\0.3", "1.2'; DROP TABLE instances; --", ""):
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"):
            own, data = encoded(**{keyword: uid})
            with target.associated() as sock:
                sock.sendall(store(data, uid if keyword == "SOPInstanceUID" else own))
                seen.add(answer(sock))
    return ", ".join(sorted(seen))


def hostile_text(target: Target, rng: random.Random) -> str:
    """PatientName of a megabyte, of markup, of escape sequences; elements that end beyond the data."""
    seen = set()
    for name in ("A" * 60_000, "<script>alert(1)</script>", "\x1b$)C\x1b(I\x1b" * 500, "\0" * 1000):
        uid, data = encoded(PatientName=name)
        with target.associated() as sock:
            sock.sendall(store(data, uid))
            seen.add(answer(sock))
    uid, data = encoded()
    for cut in range(8, 400, 7):
        with target.associated() as sock:
            sock.sendall(store(data[:cut], uid))
            seen.add(answer(sock))
    return ", ".join(sorted(seen))


def random_bytes(target: Target, rng: random.Random) -> str:
    """500 connections of random bytes, 500 associations of a mutated C-STORE."""
    uid, data = encoded()
    good = store(data, uid)
    for n in range(1000):
        with contextlib.suppress(OSError), target.connect() if n % 2 else target.associated() as sock:
            said = bytearray(rng.randbytes(rng.randint(1, 3000)) if n % 2 else good)
            for _ in range(rng.randint(0, 10)):
                said[rng.randrange(len(said))] = rng.randrange(256)
            sock.sendall(said)
    return "-"


def abrupt_ends(target: Target, rng: random.Random) -> str:
    """500 associations that are reset in the middle of an instance."""
    uid, data = encoded()
    good = store(data * 20, uid)
    for _ in range(500):
        with contextlib.suppress(OSError), target.associated() as sock:
            sock.sendall(good[: rng.randrange(len(good))])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "-"


def silent_tls(target: Target, rng: random.Random) -> str:
    """600 connections that never begin, or never end, their TLS handshake."""
    with ExitStack() as stack:
        for n in range(600):
            sock = stack.enter_context(target.connect())
            if n % 2:
                with contextlib.suppress(OSError):
                    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        time.sleep(ATTACK_S)
        return f"{target.connections()} of 600 left after {ATTACK_S:g} s"


def not_tls(target: Target, rng: random.Random) -> str:
    """Plain DICOM and random bytes on the TLS port."""
    for n in range(300):
        with contextlib.suppress(OSError), target.connect() as sock:
            sock.sendall(associate_rq() if n % 2 else rng.randbytes(500))
    return "-"


PLAIN: list[tuple[str, Attack]] = [
    ("PDU lengths of all sizes", announced_lengths),
    ("4 GiB announced, 64 MiB sent", announced_4_gib_and_sent),
    ("P-DATA-TF of 4 GiB", p_data_of_4_gib),
    ("600 silent connections", silent(ATTACKER)),
    ("600 silent connections, same address", silent("127.0.0.1")),
    ("2000 TCP health probes", health_probes),
    ("slow loris, A-ASSOCIATE-RQ", slow_loris_request),
    ("slow loris, P-DATA-TF", slow_loris_pdu),
    ("500 pipelined C-STOREs", pipelined),
    ("pipelined, answers never read", pipelined_unread),
    ("fragments of one byte", one_byte_fragments),
    ("100,000 empty fragments", empty_fragments),
    ("command set of 64 MiB", endless_command),
    ("PDVs out of order, wrong contexts", out_of_order),
    ("100,000 contexts or items", countless_items),
    ("odd AE titles", odd_titles),
    ("deflate bomb", deflate_bomb),
    ("deflated, of 8 million elements", deflated_elements),
    ("sequences 40,000 deep", deep_nesting),
    ("delimiters, 60,000 items deep", delimiters_at_depth),
    ("odd UIDs", odd_uids),
    ("hostile text, truncated data sets", hostile_text),
    ("random and mutated bytes", random_bytes),
    ("associations reset in mid-instance", abrupt_ends),
]
SECURED: list[tuple[str, Attack]] = [
    ("TLS: 600 silent handshakes", silent_tls),
    ("TLS: what is not TLS", not_tls),
]


# --- the run --------------------------------------------------------------------------------------------------


@dataclass
class Row:
    attack: str
    answer: str = ""
    peak_mib: float = 0.0
    good: int = 0
    worst_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def run_attack(name: str, attack: Attack, target: Target, rng: random.Random) -> Row:
    row = Row(name)
    before_mib, peak = target.rss_mib(), [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            with contextlib.suppress(psutil.Error):
                peak[0] = max(peak[0], target.rss_mib())

    watcher = threading.Thread(target=watch, daemon=True, name="memory")
    watcher.start()
    with GoodSender(target).working() as good:
        try:
            row.answer = attack(target, rng)
        except (OSError, AssertionError) as error:
            row.answer = type(error).__name__
        at_end, deadline = good.sent, time.monotonic() + BACK_S
        while good.sent < at_end + 20 and time.monotonic() < deadline:
            time.sleep(0.05)
    done.set()
    watcher.join()
    row.peak_mib, row.good, row.worst_s = peak[0], good.sent, good.worst_s
    if not target.process.is_running():
        row.problems.append("the gateway ended")
        return row
    if good.failed or not good.sent:
        row.problems.append(f"good sender: {good.failed[:3] or 'sent nothing'}")
    deadline = time.monotonic() + BACK_S
    while target.connections() and time.monotonic() < deadline:
        time.sleep(0.1)
    if left := target.connections():
        row.problems.append(f"{left} connections stay")
    if row.peak_mib > before_mib + MEMORY_MARGIN_MIB:
        row.problems.append(f"memory rose by {row.peak_mib - before_mib:.0f} MiB")
    return row


@contextmanager
def attacked(folder: Path, tls: bool) -> Iterator[Target]:
    """A gateway and a server of its own."""
    folder.mkdir()
    settings, context = dict(SETTINGS), None
    if tls:
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        settings["tls_cert"] = str(folder / "cert.pem")  # type: ignore[assignment]
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with server(folder) as (_, url), gateway(folder, url, **settings) as (process, port):
        yield Target(port, psutil.Process(process.popen.pid), context)


def fuzz(count: int, seed: int) -> str:
    """Mutated streams and data sets through upper_layer and header: nothing but their own errors may come out."""
    rng = random.Random(seed)
    uid, data = encoded()
    stream = associate_rq() + store(data, uid) + pdu(5, 4, bytes(4))
    for n in range(count):
        if n % 2:
            said = _mutated(stream, rng)
            feed(Acceptor([], Limits()), said, cut=rng.randrange(len(said)))
        else:
            with contextlib.suppress(HeaderError):
                read_instance(
                    _mutated(data, rng),
                    transfer_syntax_uid=rng.choice(list(SYNTAXES)),
                    calling_ae_title="FUZZ",
                    peer_address="",
                    received_at=SeriesReport.model_fields["LastReceivedAt"].default,
                )
    return f"{count} inputs, nothing raised but HeaderError"


SYNTAXES = (ExplicitVRLittleEndian, "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", DeflatedExplicitVRLittleEndian)


def _mutated(good: bytes, rng: random.Random) -> bytes:
    said = bytearray(good)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(said))
        match rng.randrange(4):
            case 0:
                said[at] = rng.randrange(256)
            case 1:
                del said[at : at + rng.randint(1, 8)]
            case 2:
                said[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                said[at : at + 4] = struct.pack("<L", rng.choice((0, 1, 0xFFFF, 2**31, 2**32 - 1)))
    return bytes(said) or b"\0"


def fuzz_all(console: Console, count: int, seed: int) -> list[Row]:
    """Mutation in two processes, and coverage-guided fuzzing where atheris is installed: all at once."""
    python = [sys.executable, "-Wignore"]
    commands = {
        f"mutations, seed {seed + n}": [
            *python,
            "-c",
            f"from bench.attacks import fuzz; print(fuzz({count // 2}, {seed + n}))",
        ]
        for n in range(2)
    }
    with tempfile.TemporaryDirectory() as crashes:
        if find_spec("atheris") is None:
            console.print("missing: atheris, for coverage-guided fuzzing")
        else:
            options = [f"-runs={count // 4}", "-max_len=4096", f"-seed={seed}", f"-artifact_prefix={crashes}/"]
            for target in ("upper_layer", "associate", "header"):
                commands[f"atheris, {target}"] = [*python, "-m", f"bench.fuzz.{target}", *options]
        running = {
            name: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
            for name, command in commands.items()
            if count
        }
        rows = []
        with bar(console, "fuzzing", len(running)) as ended:
            for name, process in running.items():
                last = process.communicate()[0].strip().splitlines()[-1:]
                problems = [f"exit code {process.returncode}: {last}"] if process.returncode else []
                console.print(f"fuzz: {name}: {last[0] if last else ''} {problems or ''}")
                rows.append(Row(f"fuzz: {name}", problems=problems))
                ended()
    return rows


def main() -> int:
    """Run the attacks; exit code 0 if all were survived."""
    parser = argparse.ArgumentParser(prog="make attacks", description=__doc__)
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--fuzz", type=int, default=1_000_000, help="mutated inputs to upper_layer and header")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    console = Console(width=180)
    rng = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name, bar(console, "attacks", len(PLAIN) + len(SECURED)) as tried:
        for attacks, tls in ((PLAIN, False), (SECURED, True)):
            with attacked(Path(name) / ("tls" if tls else "plain"), tls) as target:
                for n, attack in attacks:
                    rows += [run_attack(n, attack, target, rng)] if options.only in n else []
                    tried()
    table = Table("attack", "answer", "peak RSS", "good images", "worst delay", "survived", box=MARKDOWN)
    for row in rows:
        good = (str(row.good), f"{row.worst_s * 1000:.0f} ms")
        table.add_row(row.attack, row.answer, f"{row.peak_mib:.0f} MiB", *good, "; ".join(row.problems) or "yes")
    console.print(table)
    rows += fuzz_all(console, options.fuzz, options.seed)
    survived = sum(not row.problems for row in rows)
    console.print(f"seed {options.seed}")
    console.print(f"attacks: tried={len(rows)} survived={survived}")
    return 0 if survived == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
