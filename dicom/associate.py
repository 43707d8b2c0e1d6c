"""Read an A-ASSOCIATE-RQ and make the A-ASSOCIATE-AC (PS3.8 §9.3.2, §9.3.3): bytes in, bytes out.

Rules:

- Only what is used is read: version, AE titles, presentation contexts, maximum length, asynchronous operations window
  and roles. Everything else is skipped (PS3.8 §9.3.1).
- A text ends at a NUL; spaces around it are padding.
- An item that does not fit into the item around it raises Unreadable, and so do more items than a request can need.
- Anything else that is wrong with a presentation context only rejects that context.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from common.errors import printable
from dicom.sop_classes import is_stored

APPLICATION_CONTEXT_NAME = b"1.2.840.10008.3.1.1.1"  # PS3.7 Annex A
MAXIMUM_LENGTH = 131072
"""The longest P-DATA-TF PDU that we announce to peers (PS3.8 Annex D.1)."""
MAX_ITEMS = 2**15  # items of a whole request: contexts, their transfer syntaxes and negotiation items
MAX_ROLE_UID = 128  # characters, so that the answers to the roles of 256 contexts fit into one item
CALLED, CALLING, RESERVED, ITEMS = slice(10, 26), slice(26, 42), slice(10, 74), 74  # PS3.8 table 9-11
OF_CONTEXT = 4  # bytes before the sub-items of a presentation context, PS3.8 table 9-13
ANY_SYNTAX = "1.2.840.10008.1.2"  # answered if a rejected context proposed none; not significant, PS3.8 table 9-18

# A presentation context's result, PS3.8 table 9-18
ACCEPTANCE = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class Unreadable(Exception):
    """What the peer sent cannot be read: its lengths contradict each other. The text says which."""


class Titles(NamedTuple):
    """The called and the calling AE title of a request: 16 bytes each, as sent."""

    called_as_sent: bytes = b""
    calling_as_sent: bytes = b""

    @classmethod
    def of(cls, pdu: bytes) -> "Titles":
        """Take the AE titles out of an A-ASSOCIATE-RQ, even if the rest of it cannot be read."""
        return cls(pdu[CALLED], pdu[CALLING])

    @property
    def called(self) -> str:
        return printable(text(self.called_as_sent))

    @property
    def calling(self) -> str:
        return printable(text(self.calling_as_sent))


class Context(NamedTuple):
    """A proposed presentation context (PS3.8 §9.3.2.2)."""

    context_id: int
    abstract_syntax: str
    """Empty if none was sent."""
    transfer_syntaxes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of an A-ASSOCIATE-RQ that are used."""

    protocol_version: int
    titles: Titles
    reserved: bytes
    """The 64 bytes from the called AE title on, which the answer repeats (PS3.8 table 9-17)."""
    contexts: Sequence[Context]
    maximum_length: int
    """The longest P-DATA-TF PDU that the peer accepts; 0 for any length."""
    roles: Mapping[str, tuple[bool, bool]]
    """By SOP Class: if the peer proposes to be SCU, and if it proposes to be SCP (PS3.7 §D.3.3.4)."""
    operations: int | None = None
    """How many operations the peer wants to have in flight, 0 for any number; None if it does not say."""


class Answer(NamedTuple):
    """An A-ASSOCIATE-AC."""

    pdu: bytes
    accepted: Mapping[int, tuple[str, str]]
    """The abstract and the transfer syntax of each accepted context, by context ID."""
    operations: int
    """How many operations the peer may have in flight."""


# --- in ---------------------------------------------------------------------------------------------------------


def read(pdu: bytes) -> Request:
    """Read a whole A-ASSOCIATE-RQ. Raises Unreadable."""
    if len(pdu) < ITEMS:
        raise Unreadable(f"A-ASSOCIATE-RQ of {len(pdu)} bytes, at least {ITEMS} are needed")
    contexts: dict[int, Context] = {}
    roles: dict[str, tuple[bool, bool]] = {}
    maximum_length, operations = 0, None
    items = _Items()
    for kind, body in items.of(pdu[ITEMS:]):
        if kind == 0x20:
            context = _context(body, items)
            contexts.setdefault(context.context_id, context)  # of two contexts with one ID the first counts
        elif kind == 0x50:
            for inner, value in items.of(body):
                if inner == 0x51:
                    maximum_length = int.from_bytes(value[:4], "big")
                elif inner == 0x53 and len(value) == 4:
                    operations = int.from_bytes(value[:2], "big")
                elif inner == 0x54:
                    roles |= _role(value)
    (version,) = struct.unpack_from(">H", pdu, 6)
    return Request(version, Titles.of(pdu), pdu[RESERVED], [*contexts.values()], maximum_length, roles, operations)


class _Items:
    """Reads the items of one request at every depth, MAX_ITEMS at most."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def of(self, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the kind and the content of each item (PS3.8 §9.3.2). Raises Unreadable."""
        at = 0
        while at < len(body):
            if not self._left:
                raise Unreadable(f"A-ASSOCIATE-RQ with more than {MAX_ITEMS} items")
            self._left -= 1
            if len(body) - at < 4:
                raise Unreadable(f"an item of {len(body) - at} bytes, at least 4 are needed")
            kind, length = struct.unpack_from(">BxH", body, at)
            at += 4
            if length > len(body) - at:
                raise Unreadable(f"item 0x{kind:02X} of {length} bytes where {len(body) - at} are left")
            yield kind, body[at : at + length]
            at += length


def _context(body: bytes, items: _Items) -> Context:
    if len(body) < OF_CONTEXT:
        raise Unreadable(f"a presentation context of {len(body)} bytes, at least {OF_CONTEXT} are needed")
    abstract, transfer = "", []
    for kind, value in items.of(body[OF_CONTEXT:]):
        if kind == 0x30:
            abstract = abstract or text(value)
        elif kind == 0x40 and (syntax := text(value)):
            transfer.append(syntax)
    return Context(body[0], abstract, transfer)


def _role(value: bytes) -> dict[str, tuple[bool, bool]]:
    """Read a role selection (PS3.7 table D.3-9); return nothing if it proposes no role, or its lengths are wrong."""
    end = 2 + int.from_bytes(value[:2], "big")
    uid, roles = text(value[2:end]), value[end : end + 2]
    return (
        {uid: (bool(roles[0]), bool(roles[1]))}
        if len(uid) in range(1, MAX_ROLE_UID + 1) and len(roles) == 2 and any(roles)
        else {}
    )


def text(value: bytes) -> str:
    """Decode a title or a UID without its padding. Every byte is a character (ISO 8859-1)."""
    return value.partition(b"\0")[0].decode("latin-1").strip()


def escaped(value: bytes) -> str:
    """Return bytes as a printable text without spaces at the end; other bytes are written as `\\x00`."""
    return value.rstrip(b" ").decode("latin-1").encode("unicode_escape").decode()


# --- out --------------------------------------------------------------------------------------------------------


def accept(request: Request, supported: Mapping[str, Sequence[str]], max_operations: int = 1) -> Answer:
    """Answer each context on its own. `supported` maps abstract syntaxes other than storage to transfer syntaxes.

    A peer that wants several operations in flight gets as many, `max_operations` at most.
    """
    operations = 1 if request.operations is None else min(request.operations or max_operations, max_operations)
    results = [(context, *_result(context, supported)) for context in request.contexts]
    accepted = {
        context.context_id: (context.abstract_syntax, syntax)
        for context, result, syntax in results
        if result == ACCEPTANCE
    }
    stored = sorted({abstract for abstract, _ in accepted.values()} - supported.keys())
    roles = {uid: request.roles[uid] for uid in stored if uid in request.roles}
    body = struct.pack(">H2x", 1) + request.reserved + _item(0x10, APPLICATION_CONTEXT_NAME)
    for context, result, syntax in results:
        body += _item(0x21, bytes([context.context_id, 0, result, 0]) + _item(0x40, syntax.encode("latin-1")))
    body += _item(0x50, _user_information(roles, operations))
    return Answer(struct.pack(">BxL", 0x02, len(body)) + body, accepted, operations)


def _result(context: Context, supported: Mapping[str, Sequence[str]]) -> tuple[int, str]:
    """Return the result and the transfer syntax for a context.

    The first transfer syntax is taken: in our order for `supported` classes, in the peer's order for storage.
    """
    proposed = context.transfer_syntaxes
    if context.abstract_syntax in supported:
        usable: Sequence[str] = [uid for uid in supported[context.abstract_syntax] if uid in proposed]
    elif is_stored(context.abstract_syntax):
        usable = proposed
    else:
        return ABSTRACT_SYNTAX_NOT_SUPPORTED, next(iter(proposed), ANY_SYNTAX)
    return (ACCEPTANCE, usable[0]) if usable else (TRANSFER_SYNTAXES_NOT_SUPPORTED, next(iter(proposed), ANY_SYNTAX))


def _user_information(roles: Mapping[str, tuple[bool, bool]], operations: int) -> bytes:
    """Return the user information.

    It has our maximum length, the implementation (PS3.7 §D.3.3.2), the window (§D.3.3.3) if it is more than the default
    of 1, and the roles as proposed. We perform `operations` at once, and invoke none: 1, since 0 means any number.
    """
    told = _item(0x51, struct.pack(">L", MAXIMUM_LENGTH)) + _item(0x52, PYNETDICOM_IMPLEMENTATION_UID.encode())
    told += b"" if operations == 1 else _item(0x53, struct.pack(">HH", operations, 1))
    for uid, (scu, scp) in roles.items():
        told += _item(0x54, struct.pack(">H", len(uid)) + uid.encode("latin-1") + bytes([scu, scp]))
    return told + _item(0x55, PYNETDICOM_IMPLEMENTATION_VERSION.encode())


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content
