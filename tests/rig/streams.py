"""Mutated streams of an association, and what an acceptor has to make of them by a parser that is slow and plain.

`python -m tests.rig.streams --count 1000000` compares as many; the unit tests compare some thousands.
"""

import argparse
import random
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pynetdicom import build_context

from bench.rig.senders import associate_rq
from dicom.associate import Unreadable, accept, read
from dicom.command_set import StoreStarted
from dicom.upper_layer import (
    NEED_DATA,
    PAUSED,
    VERIFICATION,
    Aborted,
    Acceptor,
    AssociateRequested,
    EchoRequested,
    InstanceFinished,
    Limits,
    OperationRefused,
    Released,
    Violation,
)

LIMITS = Limits(max_pdu_bytes=2**17, max_command_bytes=512, max_operations=4)
CT, EXPLICIT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
MAX_ASSOCIATE = 2**18
PROGRESS = 100_000  # streams after which their number is said
CONTEXTS = [(CT, EXPLICIT), (VERIFICATION, IMPLICIT), (CT, IMPLICIT)]  # with the IDs 1, 3 and 5
REQUEST = associate_rq([build_context(*context) for context in CONTEXTS])

Events = list[tuple[Any, ...]]


def with_window(request: bytes, operations: int) -> bytes:
    """Return an A-ASSOCIATE-RQ whose user information, its last item, also asks for a window (PS3.7 §D.3.3.3)."""
    user_information = request.rindex(b"\x50\0", 0, request.index(b"\x51\0\0\4"))
    items = request[user_information + 4 :] + struct.pack(">BxHHH", 0x53, 4, operations, 1)
    body = request[6:user_information] + struct.pack(">BxH", 0x50, len(items)) + items
    return struct.pack(">BxL", 1, len(body)) + body


# --- streams ----------------------------------------------------------------------------------------------------


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(rng: random.Random, field: int, sop_class: bytes, *, data_set: bool) -> bytes:
    """Return a command set; in one of eight the elements are in another order, or one comes twice or is odd."""
    uid = f"1.2.3.{rng.randrange(10 ** rng.randrange(1, 4))}".encode()
    elements = [
        element(0x0002, sop_class),
        element(0x0100, struct.pack("<H", field)),
        element(0x0110, struct.pack("<H", rng.randrange(2**16))),
        element(0x0800, struct.pack("<H", 1 if data_set else 0x0101)),
        element(0x1000, uid + b"\0" * (len(uid) % 2) if rng.random() < 0.9 else uid),
    ]
    if rng.random() < 1 / 8:
        elements.append(rng.choice(elements))
        rng.shuffle(elements)
    return element(0, struct.pack("<L", sum(map(len, elements)))) + b"".join(elements)


def pdus(rng: random.Random, context_id: int, kind: int, message: bytes) -> bytes:
    """Return a command set (kind 1) or a data set (kind 0) as P-DATA-TF PDUs, cut by chance."""
    cuts = [rng.randrange(len(message) + 1) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
    edges = [0, *sorted(cuts), len(message)]
    parts = [message[a:b] for a, b in pairwise(edges)]
    pdvs = [
        struct.pack(">LBB", len(part) + 2, context_id, kind | (2 if n == len(parts) - 1 else 0)) + part
        for n, part in enumerate(parts)
    ]
    groups = [pdvs] if rng.random() < 0.5 else [[pdv] for pdv in pdvs]
    return b"".join(struct.pack(">BBL", 4, 0, sum(map(len, group))) + b"".join(group) for group in groups)


def operation(rng: random.Random) -> bytes:
    """Return an operation: mostly a C-STORE, else C-ECHO, C-FIND or C-CANCEL."""
    chance = rng.random()
    if chance < 0.1:
        return pdus(rng, 3, 1, command(rng, 0x30, VERIFICATION.encode(), data_set=False))
    field = 0x20 if chance < 0.15 else 0x0FFF if chance < 0.2 else 1
    has_data_set = field != 0x0FFF and rng.random() < 0.95
    context_id = rng.choice((1, 1, 5))
    made = pdus(rng, context_id, 1, command(rng, field, CT.encode(), data_set=has_data_set))
    return made + pdus(rng, context_id, 0, rng.randbytes(rng.choice((0, 3, 40, 300)))) if has_data_set else made


def stream(rng: random.Random) -> bytes:
    """Return an association's bytes, with up to three bytes changed, or a part cut out or doubled."""
    window = rng.choice((None, None, 0, 2, 100))
    request = REQUEST if window is None else with_window(REQUEST, window)
    made = bytearray(request + b"".join(operation(rng) for _ in range(rng.randrange(1, 8))))
    made += rng.choice((b"", b"\x05\0\0\0\0\4\0\0\0\0", b"\x07\0\0\0\0\4\0\0\0\0"))
    begin = len(request) if rng.random() < 0.9 else 0
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        made[rng.randrange(begin, len(made))] = rng.choice((0, 1, 2, 3, 4, 255, rng.randrange(256)))
    if rng.random() < 0.1:
        a, b = sorted(rng.randrange(begin, len(made)) for _ in range(2))
        made[a:b] = made[a:b] * rng.choice((0, 2))
    return bytes(made)


def chunks(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """Yield the bytes as they may be read, one by one at worst."""
    at, most = 0, rng.choice((1, 7, 50, 400, len(data) + 1))
    while at < len(data):
        n = rng.randrange(1, most + 1)
        yield data[at : at + n]
        at += n


# --- what has to be made of them --------------------------------------------------------------------------------


class _End(Exception):
    """The bytes end, or the association does."""


class Reference:
    """Reads a whole stream from its beginning. Every operation is answered as soon as it has come."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data, self.at, self.limits = data, 0, limits
        self.events: Events = []
        self.written: list[bytes] = []

    def run(self) -> tuple[Events, list[bytes]]:
        try:
            self.associate()
            while True:
                for context_id, header, fragment in self.pdvs():
                    self.take(context_id, header, fragment)
        except _End:
            return self.events, self.written

    def need(self, n: int) -> bytes:
        if len(self.data) - self.at < n:
            raise _End
        self.at += n
        return self.data[self.at - n : self.at]

    def broken(self, problem: str, reason: int = 6) -> None:
        self.end("Violation", problem, struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 2, reason))

    def end(self, *event: object) -> None:
        self.events.append(event)
        self.written += [event[-1]] if isinstance(event[-1], bytes) else []
        raise _End

    def header(self, allowed: dict[int, str], state: str) -> tuple[int, int]:
        names = ("A_ASSOCIATE_RQ", "A_ASSOCIATE_AC", "A_ASSOCIATE_RJ", "P_DATA_TF", "A_RELEASE_RQ", "A_RELEASE_RP")
        kind, length = struct.unpack(">BxL", self.need(6))
        if not 1 <= kind <= 7:
            self.broken(f"PDU type 0x{kind:02X} is not in PS3.8", 1)
        if kind not in allowed:
            self.broken(f"{[*names, 'A_ABORT'][kind - 1]} while {state}", 2)
        if kind == 4:
            if length > self.limits.max_pdu_bytes:
                self.broken(f"P-DATA-TF of {length} bytes is beyond max_pdu_bytes={self.limits.max_pdu_bytes}")
        elif length > (longest := MAX_ASSOCIATE if kind == 1 else 4):
            self.broken(f"{allowed[kind]} of {length} bytes, at most {longest} are allowed")
        return kind, length

    def associate(self) -> None:
        kind, length = self.header({1: "A_ASSOCIATE_RQ", 7: "A_ABORT"}, "awaiting A-ASSOCIATE-RQ")
        body = self.need(length)
        if kind == 7:
            self.end("Aborted")
        try:
            request = read(struct.pack(">BxL", 1, length) + body)
        except Unreadable as error:
            self.broken(str(error))
        if not request.protocol_version & 1:
            rejection = struct.pack(">BBLBBBB", 3, 0, 4, 0, 1, 2, 2)
            self.end("Violation", f"protocol version 0x{request.protocol_version:04X}", rejection)
        supported = {VERIFICATION: [IMPLICIT]}
        answer, self.contexts, self.window = accept(request, supported, self.limits.max_operations)
        self.room = (request.maximum_length or 131072) - 6
        self.events.append(("AssociateRequested",))
        self.written.append(answer)
        self.command, self.data_set, self.store, self.refusal = b"", b"", None, None

    store: tuple[int, str, bytes, bytes, bytes] | None
    refusal: tuple[str, int, bytes] | None

    def pdvs(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield what a P-DATA-TF holds; end at another PDU. Of a PDV that is cut off, what is there counts, too."""
        kind, left = self.header({4: "P_DATA_TF", 5: "A_RELEASE_RQ", 7: "A_ABORT"}, "data transfer")
        if kind != 4:
            self.need(left)
            self.end("Aborted") if kind == 7 else self.end("Released", b"\x06\0\0\0\0\4\0\0\0\0")
        while left:
            if left < 6:
                self.broken("P-DATA-TF ends within a presentation data value item")
            length, context_id, header = struct.unpack(">LBB", self.need(6))
            if not 2 <= length <= left - 4:
                self.broken(f"presentation data value of {length} bytes in a P-DATA-TF with {left - 4} left")
            self.check(context_id, header)
            there = self.data[self.at : self.at + length - 2]
            if header & 1 and len(self.command) + len(there) > self.limits.max_command_bytes:
                self.broken(f"command set beyond max_command_bytes={self.limits.max_command_bytes}")
            yield context_id, header, self.need(length - 2)
            left -= length + 4

    def check(self, context_id: int, header: int) -> None:
        waits = self.store is not None or self.refusal is not None
        if context_id not in self.contexts:
            self.broken(f"presentation context {context_id} was not accepted")
        if header & 1 and waits:
            self.broken("a command in the middle of a data set")
        if not header & 1 and not waits:
            self.broken("a data set without a command")
        if self.store is not None and self.store[0] != context_id:
            self.broken("a data set in another presentation context than its command")

    def take(self, context_id: int, header: int, fragment: bytes) -> None:
        if header & 1:
            self.command += fragment
            if header & 2:
                whole, self.command = self.command, b""
                self.act(context_id, whole)
            return
        self.data_set += fragment
        if not header & 2:
            return
        if self.refusal is not None:
            self.events.append(self.refusal)
            self.written.append(self.refusal[-1])
            self.refusal = None
        else:
            self.finish()

    def finish(self) -> None:
        assert self.store is not None
        context_id, _, message_id, sop_class, uid = self.store
        self.events.append(("InstanceFinished", len(self.data_set), self.data_set))
        self.written.append(self.response(context_id, 1, message_id, sop_class, 0, uid))
        self.store = None

    def act(self, context_id: int, whole: bytes) -> None:
        elements = self.elements(whole)
        field = self.us(elements, 0x0100)
        if field & 0x8000:
            self.broken(f"a DIMSE response, 0x{field:04X}, to no request")
        if field == 0x0FFF:
            return
        message_id = elements.get(0x0110, b"")
        if len(message_id) != 2:
            self.broken("a command set without MessageID")
        sop_class = elements.get(0x0002, elements.get(0x0003, b""))
        abstract, transfer = self.contexts[context_id]
        has_data_set = self.us(elements, 0x0800) != 0x0101
        self.data_set = b""
        if field == 1 and abstract != VERIFICATION:
            self.store = (context_id, transfer, message_id, sop_class, elements.get(0x1000, b""))
            self.events.append(("StoreStarted", *self.store))
            if not has_data_set:
                self.finish()
            return
        if field == 0x30 and abstract == VERIFICATION and not has_data_set:
            response = self.response(context_id, field, message_id, sop_class, 0)
            self.events.append(("EchoRequested", response))
            self.written.append(response)
            return
        response = self.response(context_id, field, message_id, sop_class, 0x0122 if field == 1 else 0x0211)
        refusal = ("OperationRefused", field, response)
        if has_data_set:
            self.refusal = refusal
        else:
            self.events.append(refusal)
            self.written.append(response)

    def elements(self, whole: bytes) -> dict[int, bytes]:
        found, at = {}, 0
        while at + 8 <= len(whole):
            group, number, length = struct.unpack_from("<HHL", whole, at)
            if group or at + 8 + length > len(whole):
                at += 8  # a header alone at the end is passed over
                break
            found[number] = whole[at + 8 : at + 8 + length]
            at += 8 + length
        if at != len(whole):
            self.broken("a command set that cannot be read")
        return found

    def us(self, elements: dict[int, bytes], number: int) -> int:
        value = elements.get(number, b"")
        if len(value) != 2:
            self.broken(f"a command set without (0000,{number:04X})")
        return int.from_bytes(value, "little")

    def response(
        self, context_id: int, field: int, message_id: bytes, sop_class: bytes, status: int, uid: bytes | None = None
    ) -> bytes:
        def padded(number: int, value: bytes) -> bytes:
            return element(number, value + b"\0" * (len(value) % 2))

        body = padded(2, sop_class) if sop_class else b""
        body += padded(0x100, struct.pack("<H", field | 0x8000)) + padded(0x120, message_id)
        body += padded(0x800, b"\x01\x01") + padded(0x900, struct.pack("<H", status))
        body += b"" if uid is None else padded(0x1000, uid)
        message = element(0, struct.pack("<L", len(body))) + body
        room = max(1, self.room)
        made = b""
        for at in range(0, len(message), room):
            part, last = message[at : at + room], at + room >= len(message)
            made += struct.pack(">BxLLBB", 4, len(part) + 6, len(part) + 2, context_id, 3 if last else 1) + part
        return made


class Observed:
    """What our acceptor makes of a stream that is read in parts, into one buffer that is overwritten.

    C-STOREs are answered at any time that the acceptor's window allows, and in any order.
    """

    def __init__(self, rng: random.Random) -> None:
        self.acceptor, self.rng = Acceptor([build_context(VERIFICATION, IMPLICIT)], LIMITS), rng
        self.events: Events = []
        self.written: list[bytes] = []
        self.waiting: list[StoreStarted] = []
        self.data_set = bytearray()

    def run(self, parts: Iterator[bytes]) -> tuple[Events, list[bytes]]:
        buffer = bytearray(2**17)
        for part in parts:
            buffer[: len(part)] = part
            self.acceptor.receive_data(memoryview(buffer)[: len(part)])
            self.advance()
            self.acceptor.hold()
            buffer[: len(part)] = bytes(len(part))
        while self.waiting:
            self.respond()
            self.advance()
        return self.events, self.written

    def advance(self) -> None:
        while (event := self.acceptor.next_event()) is not NEED_DATA:
            if event is PAUSED:
                assert self.waiting
                if self.rng.random() < 0.2:
                    return  # more is read before the answer
                self.respond()
            else:
                self.handle(event)
            if self.waiting and self.rng.random() < 0.2:
                self.respond()

    def respond(self) -> None:
        store = self.waiting.pop(self.rng.randrange(len(self.waiting)))
        self.written.append(self.acceptor.respond(0, store=store))

    def handle(self, event: object) -> None:
        match event:
            case AssociateRequested():
                self.events.append(("AssociateRequested",))
                self.written.append(self.acceptor.accept())
                return
            case StoreStarted():
                self.data_set.clear()
                self.acceptor.data_set = self.data_set.extend
                self.started = event
            case InstanceFinished(length):
                self.events.append(("InstanceFinished", length, bytes(self.data_set)))
                self.waiting.append(self.started)
                assert len(self.waiting) <= self.acceptor.window
                return
            case EchoRequested(response) | OperationRefused(_, response):
                self.written.append(response)
            case Released(response):
                assert not self.waiting
                self.written.append(response)
            case Violation(_, response):
                self.written.append(response)
                self.waiting.clear()  # nothing is answered any more
            case Aborted():
                self.waiting.clear()
        names = getattr(event, "__match_args__", ())
        self.events.append((type(event).__name__, *(getattr(event, name) for name in names)))


def compare(seed: int) -> list[str]:
    """Compare ours with the reference on the stream of a seed, cut by chance; return the kinds of events."""
    rng = random.Random(seed)
    data = stream(rng)
    reference, ours = Reference(data, LIMITS), Observed(rng)
    expected, found = reference.run(), ours.run(chunks(rng, data))
    assert found[0] == expected[0], f"seed {seed}"
    if ours.acceptor.window == 1:
        assert found[1] == expected[1], f"seed {seed}"
    else:
        missing = Counter(expected[1]) - Counter(found[1])
        ended_well = expected[0][-1:] not in ([("Aborted",)], []) and expected[0][-1][0] != "Violation"
        assert not Counter(found[1]) - Counter(expected[1]), f"seed {seed}"
        assert not missing or not ended_well, f"seed {seed}"
    return [str(kind) for kind, *_ in expected[0]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    for n in range(arguments.count):
        compare(arguments.first + n)
        if (n + 1) % PROGRESS == 0:
            sys.stdout.write(f"{n + 1} streams\n")
            sys.stdout.flush()
    sys.stdout.write(f"{arguments.count} streams, no difference\n")


if __name__ == "__main__":
    main()
