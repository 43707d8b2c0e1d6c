"""pacs.py against a PACS whose PDUs and command sets are nonsense, byte by byte: what no library sends."""

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.questions import Answer
from tests.rig.factories import SERIES
from tests.rig.foreign_pacs import UIDS, about, asking
from tests.rig.identifiers import element

PENDING, SUCCESS = b"\x00\xff", b"\x00\x00"


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def accepting(request: bytes) -> bytes:
    """An A-ASSOCIATE-AC that takes the first context, in implicit VR little endian."""
    contexts = item(0x21, b"\x01\0\0\0" + item(0x40, b"1.2.840.10008.1.2"))
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    return pdu(2, request[:68] + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def message(control: int, data: bytes, context: int = 1) -> bytes:
    """A P-DATA-TF PDU with one value; control 3 is a command, 2 a data set."""
    return pdu(4, struct.pack(">LBB", len(data) + 2, context, control) + data)


def command(*elements: tuple[int, bytes]) -> bytes:
    body = b"".join(element(tag, value) for tag, value in elements)
    return element(0, struct.pack("<L", len(body))) + body


def response(status: bytes = PENDING, *more: tuple[int, bytes], field: bytes = b"\x20\x80") -> bytes:
    """A C-FIND-RSP, followed by a data set where it is pending."""
    follows = b"\x01\0" if status == PENDING else b"\x01\x01"
    of = ((0x0002, b"1.2.840.10008.5.1.4.1.2.2.1\0"), (0x0100, field), (0x0120, b"\x01\0"), (0x0800, follows))
    return message(3, command(*of, (0x0900, status), *more))


A_SERIES = element(0x0020000E, SERIES.encode().ljust(len(SERIES) + len(SERIES) % 2, b"\0"))
THREE = message(2, A_SERIES + element(0x00201209, b"3 "))


def pieces(data: bytes | Iterator[bytes]) -> Iterator[bytes]:
    return iter([data]) if isinstance(data, bytes) else data


@contextmanager
def raw_pacs(*say: bytes | Iterator[bytes], associate: bytes | Iterator[bytes] | None = None) -> Iterator[int]:
    """Accepts (or says `associate`), waits for a question, says that, and waits for the end; what is no bytes drips."""
    ended = threading.Event()

    def read(sock: socket.socket) -> bytes:
        file = sock.makefile("rb")
        head = file.read(6)
        return file.read(struct.unpack(">L", head[2:])[0])

    def serve() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError, struct.error):
                    sock.settimeout(60)
                    request = read(sock)
                    for data in pieces(accepting(request) if associate is None else associate):
                        sock.sendall(data)
                    read(sock)
                    for data in itertools.chain.from_iterable(map(pieces, say)):
                        sock.sendall(data)
                    while sock.recv(4096):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)


SOON_S = 0.4  # for a PACS that leaves an answer open


async def ask(port: int, timeout_s: float = 60) -> Answer:
    async with asking(port, timeout_s=timeout_s) as (pacs, _):
        return await pacs.ask(about())


async def test_the_raw_pacs_is_one() -> None:
    with raw_pacs(response() + THREE + response(SUCCESS)) as port:
        assert await ask(port) == Answer("PACS1", frozenset(UIDS), 3, 3, confirmed=True)


NONSENSE = {
    "a status of two values": response(b"\0\xff\0\0") + THREE,
    "a status of one byte": response(b"\0") + THREE,
    "a status without value": response(b"") + THREE,
    "a response to C-STORE": response(field=b"\x01\x80"),
    "a request": response(field=b"\x01\x00"),
    "a command that nobody knows": response(field=b"\x77\x77"),
    "a command of two fields": response(field=b"\x01\0\x02\0"),
    "a command set without field": message(3, command((0x0002, b"1.2"))),
    "no command set": message(3, b"\xff" * 40),
    "another context": message(3, b"", context=77),
    "a data set without command": THREE,
    "a value that is longer than its PDU": pdu(4, struct.pack(">L", 2**31) + b"\x01\x03abcd"),
    "a PDU of 4 GiB": struct.pack(">BBL", 4, 0, 2**32 - 1),
    "a PDU that nobody knows": pdu(9, bytes(4)),
    "an A-ABORT": pdu(7, bytes(4)),
    "an A-RELEASE-RQ": pdu(5, bytes(4)),
    "half a PDU": b"\x04\0",
}


@pytest.mark.parametrize("say", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_instead_of_an_answer_is_an_answer_that_was_broken_off(say: bytes) -> None:
    with raw_pacs(say) as port:
        answer = await ask(port, SOON_S)
    assert (answer.count, answer.confirmed, answer.problem) == (None, False, "broke off or did not answer in time")


@pytest.mark.parametrize(
    ("associate", "problem"),
    [
        (pdu(2, bytes(10)), "does not offer Study Root Query/Retrieve Information Model - FIND"),
        (pdu(3, b"\0\1\3\x63"), "cannot be reached"),
        (pdu(3, b"\0\1\1\7"), "rejected the association: Called AE title not recognised"),
        (pdu(3, b"\0"), "cannot be reached"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
    ],
)
async def test_nonsense_instead_of_an_association_is_none(associate: bytes, problem: str) -> None:
    with raw_pacs(associate=associate) as port:
        assert (await ask(port, SOON_S if problem == "cannot be reached" else 60)).problem == problem


async def test_what_a_status_carries_besides_may_be_nonsense() -> None:
    with raw_pacs(response(PENDING, (0x0902, b"Nobody^Says ")) + THREE + response(SUCCESS)) as port:
        assert (await ask(port)).count == 3


@pytest.mark.parametrize("associate", [None, True], ids=["in an answer", "in the association"])
async def test_a_pacs_that_drips_a_pdu_keeps_no_thread(associate: bool | None) -> None:
    """A byte now and then, of a PDU that is long: each wait for bytes ends in time, and the whole never would."""
    head = struct.pack(">BBL", 4, 0, 10**6)

    def drip() -> Iterator[bytes]:
        yield head
        while True:
            time.sleep(0.1)
            yield b"\0"

    options: dict[str, Any] = {"associate": drip()} if associate else {}
    with raw_pacs(*(() if associate else (drip(),)), **options) as port:
        answer = await ask(port, SOON_S)
        assert answer.problem is not None
        for _ in range(600):
            if not [thread for thread in threading.enumerate() if thread.name == "pacs"]:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("its thread still waits")
