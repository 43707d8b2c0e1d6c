"""What the bench measures with: its sender and floor in C against real peers, its long link, its builds."""

import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from bench.rig.built import NotBuilt, compiled, dicom_rs
from bench.rig.link import long_link
from bench.rig.processes import Process, gateway, running
from bench.rig.receivers import process_cpu_s
from bench.rig.senders import pure_scu, synthetic_series
from gateway.journal_reader import read

CC = pytest.mark.peer("cc")
ROOT_UID = "1.2.826.0.1.3680043.10.9"
NO_SYNC = """
#include <errno.h>
int fdatasync(int fd) { (void)fd; errno = EIO; return -1; }
"""


def send(port: int, *options: str | int) -> "subprocess.CompletedProcess[str]":
    command = [str(compiled("sender")), *map(str, options), "-u", ROOT_UID, "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def said(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """What it tells at its end, but for how long it took."""
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["images_per_s"] == pytest.approx(told["images"] / told["seconds"], rel=0.01)
    return {name: value for name, value in told.items() if name not in {"seconds", "images_per_s"}}


def uids(associations: int, images: int) -> set[str]:
    """The SOP Instance UIDs that it sends."""
    return {f"{ROOT_UID}.{100 + a}.{10**9 + n}" for a in range(associations) for n in range(images)}


# --- the sender ---------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    message_id: int
    sop_instance_uid: str


class Peer:
    """An SCP's side of one association, byte by byte, so that it may answer in any order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def accept(self, window: int) -> int:
        """Accept, with that window; returns the one that was proposed, 1 where none was."""
        request = self._pdu(0x01)
        at = request.find(b"\x53\x00\x00\x04")
        items = item(0x10, b"1.2.840.10008.3.1.1.1")
        items += item(0x21, bytes([1, 0, 0, 0]) + item(0x40, ExplicitVRLittleEndian.encode()))
        user = item(0x51, struct.pack(">L", 16384)) + item(0x53, struct.pack(">HH", window, 1))
        body = request[:68] + items + item(0x50, user)
        self._sock.sendall(struct.pack(">BxL", 0x02, len(body)) + body)
        return 1 if at < 0 else int.from_bytes(request[at + 4 : at + 6], "big")

    def request(self) -> Stored:
        """Read one C-STORE-RQ with its data set; both have to say the same UID."""
        command, ds = self._message(), self._message()
        elements = dict(self._elements(command))
        uid = elements[0x1000].rstrip(b"\0").decode()
        image = dcmread(BytesIO(b"\0" * 128 + b"DICM" + META + ds))
        assert image.SOPInstanceUID == uid
        assert len(image.PixelData) == 2 * image.Rows * image.Columns
        return Stored(int.from_bytes(elements[0x0110], "little"), uid)

    def answer(self, stored: Stored, status: int = 0) -> None:
        elements = {0x0100: 0x8001, 0x0120: stored.message_id, 0x0800: 0x0101, 0x0900: status}
        command = b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in elements.items())
        self._sock.sendall(struct.pack(">BxLLBB", 0x04, len(command) + 6, len(command) + 2, 1, 3) + command)

    def release(self) -> None:
        self._pdu(0x05)
        self._sock.sendall(struct.pack(">BxLL", 0x06, 4, 0))

    def is_quiet(self) -> bool:
        return not select.select([self._sock], [], [], 0.2)[0]

    def _message(self) -> bytes:
        message = b""
        while True:
            pdu = self._pdu(0x04)
            length, _, control = struct.unpack_from(">LBB", pdu)
            assert length == len(pdu) - 4
            message += pdu[6:]
            if control & 2:
                return message

    def _elements(self, command: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < len(command):
            element, length = struct.unpack_from("<2xHL", command, at)
            yield element, command[at + 8 : at + 8 + length]
            at += 8 + length

    def _pdu(self, kind: int) -> bytes:
        head = self._sock.recv(6, socket.MSG_WAITALL)
        assert head[0] == kind
        body = self._sock.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)
        assert len(body) <= max(16384, len(body) if kind == 0x01 else 0)
        return body


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def meta() -> bytes:
    """The File Meta Information of what the sender sends."""
    file = BytesIO()
    (ds,) = synthetic_series(1)
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()[132 : file.getvalue().index(b"\x08\x00\x16\x00UI")]


META = meta()


@contextmanager
def sending(*options: str | int) -> Iterator[tuple[Peer, "subprocess.Popen[str]"]]:
    """The sender, on one association to a peer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        command = [str(compiled("sender")), *map(str, options), "-u", ROOT_UID, "127.0.0.1"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, str(listener.getsockname()[1])], **pipes) as sender:
            try:
                sock, _ = listener.accept()
                with closing(sock):
                    sock.settimeout(60)
                    yield Peer(sock), sender
            finally:
                sender.kill()


@CC
def test_a_window_of_requests_is_unanswered_at_a_time_and_answers_come_in_any_order() -> None:
    with sending("-n", 12, "-w", 8, "-l") as (peer, sender):
        assert peer.accept(window=4) == 8
        refused = set()
        for _ in range(3):
            waiting = [peer.request() for _ in range(4)]
            assert peer.is_quiet()
            refused.add(waiting[2].sop_instance_uid)
            for stored in reversed(waiting):
                peer.answer(stored, 0xA700 if stored == waiting[2] else 0)
        peer.release()
        out, error = sender.communicate(timeout=60)
    assert error == ""
    *acknowledged, last = out.splitlines()
    assert set(acknowledged) == uids(1, 12) - refused
    assert json.loads(last)["refused"] == {"0xA700": 3}
    assert (json.loads(last)["window"], sender.returncode) == (4, 1)


@CC
def test_an_answer_to_no_request_fails() -> None:
    with sending("-n", 2) as (peer, sender):
        assert peer.accept(window=1) == 1
        peer.answer(Stored(peer.request().message_id + 7, ""))
        _, error = sender.communicate(timeout=60)
    assert sender.returncode == 2
    assert "waits for none" in error


@CC
def test_who_closes_the_connection_fails_the_sender() -> None:
    with sending("-n", 2) as (peer, sender):
        peer.accept(window=1)
        peer.request()
        peer._sock.shutdown(socket.SHUT_RDWR)
        _, error = sender.communicate(timeout=60)
    assert (sender.returncode, error.strip()) == (2, "the peer closed the connection")


@CC
@pytest.mark.parametrize("answers", [False, True])
def test_stock_pynetdicom_gets_every_image_once_whether_it_answers_a_window_of_one_or_none(answers: bool) -> None:
    kept: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        kept.append(event.dataset)
        return 0

    ae = AE("STORESCP")
    ae.supported_contexts = AllStoragePresentationContexts
    handlers: list[Any] = [(evt.EVT_C_STORE, keep)]
    handlers += [(evt.EVT_ASYNC_OPS, lambda _: (1, 1))] if answers else []
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = int(free.getsockname()[1])
    scp = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    assert scp is not None
    try:
        done = send(port, "-a", 2, "-n", 21, "-w", 16, "-m", 64)
    finally:
        scp.shutdown()
    assert said(done) == {"images": 42, "window": 1, "refused": {}}
    assert sorted(ds.SOPInstanceUID for ds in kept) == sorted(uids(2, 21))
    assert len({ds.SeriesInstanceUID for ds in kept}) == 4  # of 20 images, and of 1, on each association
    assert {(ds.Rows, len(ds.PixelData)) for ds in kept} == {(64, 8192)}


@CC
@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 16])
def test_the_gateway_keeps_every_image_of_the_sender_once(tmp_path: Path, window: int) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", min_free_bytes=0, idle_timeout_s=600, drain_timeout_s=1) as (_, port):
        assert send(port, "-a", 3, "-n", 50, "-w", window).returncode == 0
        (journal,) = tmp_path.glob("*.db")
        assert [row["n"] for row in read(journal, "SELECT count(*) AS n FROM instances")] == [150]


# --- the floor ----------------------------------------------------------------------------------------------------


@contextmanager
def floor(folder: Path, **environment: str) -> Iterator[tuple[Path, int]]:
    """A running floor: its file and its port."""
    log = folder / "floor"
    with running(Process("floor", [str(compiled("floor")), str(log), "0"], folder, **environment)) as process:
        yield log, process.wait_for(lambda line: int(line.removeprefix("listening on ")))


def records(log: Path) -> Iterator[tuple[str, bytes]]:
    """UIDs and beginnings of data sets, up to the zeros behind the last record."""
    data = log.read_bytes()
    at = 0
    while size := int.from_bytes(data[at : at + 2], "little"):
        record = data[at + 2 : at + 2 + size]
        yield record[:64].rstrip(b"\0").decode(), record[64:]
        at += 2 + size


@CC
@pytest.mark.parametrize(("window", "matrix"), [(1, 128), (16, 128), (1, 512), (100, 8)])
def test_the_floor_keeps_what_it_answered(tmp_path: Path, window: int, matrix: int) -> None:
    with floor(tmp_path) as (log, port):
        done = send(port, "-a", 4, "-n", 200 if matrix < 512 else 20, "-w", window, "-m", matrix, "-l")
    *acknowledged, _ = done.stdout.splitlines()
    assert (said(done)["window"], done.returncode) == (min(window, 64), 0)
    kept = dict(records(log))
    assert sorted(uid for uid, _ in records(log)) == sorted(acknowledged)
    assert all(uid.encode() in head and head.startswith(b"\x08\x00\x16\x00UI") for uid, head in kept.items())


@CC
def test_the_floor_answers_nothing_that_the_disk_refused(tmp_path: Path) -> None:
    (tmp_path / "no_sync.c").write_text(NO_SYNC)
    library = tmp_path / "no_sync.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "no_sync.c"], check=True)
    with floor(tmp_path, LD_PRELOAD=str(library)) as (_, port):
        done = send(port, "-n", 3, "-l")
    assert (done.stdout, done.returncode) == ("", 2)


@CC
def test_the_floor_serves_stock_pynetdicom(tmp_path: Path) -> None:
    images = synthetic_series(3)
    contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(Verification)]
    with floor(tmp_path) as (log, port):
        assoc = pure_scu(AE("SCU").associate("127.0.0.1", port, contexts))
        assert assoc.is_established
        assert assoc.send_c_echo().Status == 0
        assert [assoc.send_c_store(ds).Status for ds in images] == [0, 0, 0]
        assoc.release()
    assert [uid for uid, _ in records(log)] == [ds.SOPInstanceUID for ds in images]


# --- long links, builds, CPU time ---------------------------------------------------------------------------------


@contextmanager
def echoing() -> Iterator[int]:
    """A port that sends back what it gets on one connection, until its end."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with closing(sock):
                while data := sock.recv(65536):
                    sock.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join()


def test_a_long_link_forwards_every_byte_and_the_end_a_round_trip_later() -> None:
    sent = os.urandom(4_000_000)
    received = b""
    with echoing() as far, long_link(far, 0.05) as port, closing(socket.create_connection(("127.0.0.1", port))) as sock:
        sock.settimeout(60)
        began = time.monotonic()
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert time.monotonic() - began >= 0.1  # connecting takes a round trip, too
        began = time.monotonic()
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert time.monotonic() - began >= 0.05

        def write() -> None:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        while data := sock.recv(1 << 20):
            received += data
        writer.join()
    assert received == sent


def test_a_long_link_to_nothing_closes() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        nobody = int(free.getsockname()[1])
    with long_link(nobody, 0.01) as port, closing(socket.create_connection(("127.0.0.1", port))) as sock:
        sock.settimeout(60)
        assert sock.recv(1) == b""


def test_a_long_link_can_end_while_bytes_are_under_way() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as far,
        long_link(far.getsockname()[1], 600) as port,
        closing(socket.create_connection(("127.0.0.1", port))) as sock,
    ):
        sock.sendall(b"x")


def test_what_builds_programs_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match="gcc"):
        compiled("floor", None, tmp_path)
    with pytest.raises(NotBuilt, match="cargo"):
        dicom_rs(None, tmp_path)
    with pytest.raises(NotBuilt, match="cargo"):
        dicom_rs(str(tmp_path / "cargo"), tmp_path)


@CC
def test_a_program_is_compiled_once(tmp_path: Path) -> None:
    program = compiled("floor", cache=tmp_path)
    assert compiled("floor", None, tmp_path) == program
    assert list(tmp_path.iterdir()) == [program]


def test_cpu_time_is_that_of_the_process() -> None:
    before = time.process_time()
    assert before <= process_cpu_s(os.getpid()) <= time.process_time()
    with pytest.raises(OSError, match="Invalid argument"):
        process_cpu_s(2**22)
