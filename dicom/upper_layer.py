"""The DICOM upper layer of an acceptor, as a sans-IO state machine (PS3.8 §9.2): bytes in, events and bytes out.

Rules:

- `receive_data` takes the bytes of the peer. `next_event` returns what they mean: an event, NEED_DATA if more bytes are
  needed, or PAUSED while the caller has to answer. While it is PAUSED, the transport should not be read.
- As many C-STOREs may wait for their answers as the association's window allows (PS3.7 §D.3.3.3): one, unless the peer
  asked for more. They are answered in any order.
- `accept`, `reject`, `respond` and `abort` return the bytes to write to the peer.
- Released, Aborted and Violation are the last events. The caller writes the bytes in the event; everything that the
  peer still sends is ignored (Sta13).
- P-DATA is parsed while it streams, however it is fragmented, in the buffer that it was read into. Fragments of a data
  set are passed to `data_set` at once.
- Before that buffer is overwritten, `hold` copies what is left of it: nothing, or the beginning of a header, unless the
  caller has to answer first.
- There are no sockets, no clock and no logging here.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pynetdicom.presentation import PresentationContext

from dicom.associate import MAXIMUM_LENGTH, Request, Titles, Unreadable, accept, read
from dicom.command_set import StoreForm, StoreStarted, element, elements_of, number
from dicom.statuses import SOP_CLASS_NOT_SUPPORTED, SUCCESS, UNRECOGNIZED_OPERATION

MAX_ASSOCIATE_BYTES = 2**18  # longest A-ASSOCIATE-RQ that is accepted


class State(Enum):
    """The states of PS3.8 §9.2.1 that an acceptor can be in, if there are no release collisions."""

    STA2 = "awaiting A-ASSOCIATE-RQ"
    STA3 = "awaiting the local answer to an A-ASSOCIATE-RQ"
    STA6 = "data transfer"
    STA13 = "awaiting the transport's close"


class PduType(Enum):
    """PS3.8 §9.3."""

    A_ASSOCIATE_RQ = 0x01
    A_ASSOCIATE_AC = 0x02
    A_ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    A_RELEASE_RQ = 0x05
    A_RELEASE_RP = 0x06
    A_ABORT = 0x07


EXPECTED = {
    State.STA2: {PduType.A_ASSOCIATE_RQ, PduType.A_ABORT},
    State.STA6: {PduType.P_DATA_TF, PduType.A_RELEASE_RQ, PduType.A_ABORT},
}
"""The PDUs that are allowed in each state (PS3.8 table 9-10). Any other is answered with A-ABORT (AA-1, AA-8)."""

P_DATA_TF = PduType.P_DATA_TF.value

# A-ABORT reasons, PS3.8 table 9-26
UNRECOGNIZED_PDU = 1
UNEXPECTED_PDU = 2
INVALID_PDU_PARAMETER = 6

PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)  # A-ASSOCIATE-RJ result, source and reason, PS3.8 table 9-21

C_STORE_RQ = 0x0001
C_ECHO_RQ = 0x0030
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000
NO_DATA_SET = 0x0101
VERIFICATION = "1.2.840.10008.1.1"

PDU_HEADER, PDV_HEADER = struct.Struct(">BxL"), struct.Struct(">LBB")  # PS3.8 §9.3.1, §9.3.5.1 and Annex E.2


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a peer. One that exceeds them is answered with A-ABORT."""

    max_pdu_bytes: int = 2**20
    max_command_bytes: int = 2**16
    max_operations: int = 1
    """The largest window that is granted; beyond its window a peer has to wait."""


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AssociateRequested:
    """The peer asks for an association. The caller has to call `accept` or `reject`."""

    request: Request


class InstanceFinished(NamedTuple):
    """The last fragment of a data set has come. The caller has to call `respond`."""

    length: int
    """The length of the encoded data set in bytes."""


@dataclass(frozen=True, slots=True)
class EchoRequested:
    """A C-ECHO-RQ has come. The caller writes `response`."""

    response: bytes


@dataclass(frozen=True, slots=True)
class OperationRefused:
    """The peer asks for a DIMSE operation that is not supported. The caller writes `response`."""

    command_field: int
    response: bytes


@dataclass(frozen=True, slots=True)
class Released:
    """The peer releases the association. The caller writes `response`."""

    response: bytes


@dataclass(frozen=True, slots=True)
class Aborted:
    """The peer aborted the association. The caller closes the connection."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer violated the protocol or a limit. The caller writes `response`, an A-ABORT or A-ASSOCIATE-RJ."""

    problem: str
    response: bytes


class Wait(Enum):
    NEED_DATA = "feed more"
    PAUSED = "answer first"


NEED_DATA, PAUSED = Wait.NEED_DATA, Wait.PAUSED

Event = (
    AssociateRequested
    | StoreStarted
    | InstanceFinished
    | EchoRequested
    | OperationRefused
    | Released
    | Aborted
    | Violation
    | Wait
)


class _Broken(Exception):
    """The peer did something wrong. The text says what, `reason` is that of the A-ABORT."""

    def __init__(self, problem: str, reason: int = INVALID_PDU_PARAMETER) -> None:
        super().__init__(problem)
        self.reason = reason


def pass_over(fragment: memoryview) -> None:
    """Ignore a fragment, such as one of an operation that is not supported."""


# --- the state machine ----------------------------------------------------------------------------------------


class Acceptor:
    """The state of one association, as seen by the acceptor."""

    def __init__(self, supported: Sequence[PresentationContext], limits: Limits) -> None:
        """Wait for an A-ASSOCIATE-RQ. `supported` are contexts other than storage; storage is always accepted."""
        self.state = State.STA2
        self.titles = Titles()
        """The AE titles of the A-ASSOCIATE-RQ, once it has come, even if it is not readable."""
        self._supported = supported
        self._limits = limits
        self._buffer: memoryview | bytearray = bytearray()  # the caller's buffer, or a copy of what was left of one
        self._at = 0  # how much of the buffer is consumed
        self.pdus = 0
        """How many P-DATA-TF PDUs have begun."""
        self._pdu_left = 0  # bytes left of the current P-DATA-TF
        self._pdv_left = 0  # bytes left of its current presentation data value (PDV)
        self._pdv_context = 0
        self._pdv_is_command = self._pdv_is_last = False
        self._acceptance = b""
        self._contexts: Mapping[int, tuple[str, str]] = {}  # accepted contexts: abstract and transfer syntax by ID
        self._peer_maximum_length = 0
        self._command = bytearray()  # of which more fragments will come
        self._form: StoreForm | None = None  # that of the last C-STORE-RQ
        self.window = 1
        """How many C-STOREs may be in flight."""
        self._store: StoreStarted | None = None  # the one whose data set is coming
        self._waiting: list[StoreStarted] = []  # those that have come and are not answered, in their order
        self._refusal: OperationRefused | None = None  # the event to return once its data set has been skipped
        self.data_set: Callable[[memoryview], object] = pass_over
        """Called with each fragment of the data set after StoreStarted. The bytes are valid only during the call."""
        self._length = 0
        self._without: StoreStarted | None = None  # a C-STORE-RQ without a data set, to be finished at once
        self._paused = False

    # --- in ---

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that the peer sent. They must not change before `hold`, or `next_event` has returned NEED_DATA."""
        if self._at == len(self._buffer):
            self._buffer, self._at = memoryview(data), 0
        else:
            self._own().extend(data)

    def hold(self) -> None:
        """Copy the bytes that were not read yet, since their buffer will be overwritten."""
        if self._at == len(self._buffer):
            self._buffer, self._at = bytearray(), 0
        else:
            self._own()

    def _own(self) -> bytearray:
        """Return the bytes that were not read yet in a buffer of our own."""
        if isinstance(self._buffer, memoryview):
            self._buffer = bytearray(self._buffer[self._at :])
        else:
            del self._buffer[: self._at]
        self._at = 0
        return self._buffer

    @property
    def in_pdu(self) -> bool:
        """Tell if a PDU has begun and not ended, which the time-out for a PDU needs to know."""
        return self._pdu_left > 0 or len(self._buffer) > self._at

    @property
    def in_instance(self) -> bool:
        """Tell if a C-STORE-RQ has come that is not answered yet."""
        return self._store is not None or bool(self._waiting)

    def next_event(self) -> Event:
        """Return the next event, or NEED_DATA or PAUSED."""
        if self._without is not None:
            self._without = None
            return self._finished(0)
        if self._paused:
            return PAUSED
        try:
            while self.state is not State.STA13:
                found = self._in_pdu() if self._pdu_left else self._pdu()
                if found is NEED_DATA:
                    self.hold()
                if found is not None:
                    return found
        except (_Broken, Unreadable) as broken:
            self._end()
            reason = broken.reason if isinstance(broken, _Broken) else INVALID_PDU_PARAMETER
            return Violation(str(broken), _abort(reason))
        self._end()  # AA-6: everything that still comes is ignored
        return NEED_DATA

    def _pdu(self) -> Event | None:
        """Begin the next PDU. A P-DATA-TF is streamed; the others are short, and read once they are complete."""
        if len(self._buffer) - self._at < PDU_HEADER.size:
            return NEED_DATA
        number, length = PDU_HEADER.unpack_from(self._buffer, self._at)
        if number != P_DATA_TF or self.state is not State.STA6:
            return self._short_pdu(number, length)
        if length > self._limits.max_pdu_bytes:
            raise _Broken(f"P-DATA-TF of {length} bytes is beyond max_pdu_bytes={self._limits.max_pdu_bytes}")
        self._at += PDU_HEADER.size
        self._pdu_left = length
        self.pdus += 1
        return None

    def _short_pdu(self, number: int, length: int) -> Event:
        """Read a PDU other than P-DATA-TF once it is complete. NEED_DATA if it is not."""
        try:
            kind = PduType(number)
        except ValueError:
            raise _Broken(f"PDU type 0x{number:02X} is not in PS3.8", UNRECOGNIZED_PDU) from None
        if kind not in EXPECTED[self.state]:
            raise _Broken(f"{kind.name} while {self.state.value}", UNEXPECTED_PDU)
        longest = MAX_ASSOCIATE_BYTES if kind is PduType.A_ASSOCIATE_RQ else 4
        if length > longest:
            raise _Broken(f"{kind.name} of {length} bytes, at most {longest} are allowed")
        if len(self._buffer) - self._at < 6 + length:
            return NEED_DATA
        if kind is PduType.A_RELEASE_RQ and self._waiting:
            return PAUSED  # every C-STORE is answered first
        pdu = bytes(self._buffer[self._at : self._at + 6 + length])
        self._at += 6 + length
        if kind is PduType.A_ASSOCIATE_RQ:
            return self._associate(pdu)
        self._end()
        return Aborted() if kind is PduType.A_ABORT else Released(b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00")

    def _associate(self, pdu: bytes) -> Event:
        self.titles = Titles.of(pdu)
        request = read(pdu)
        if not request.protocol_version & 1:
            return Violation(
                f"protocol version 0x{request.protocol_version:04X}", self.reject(*PROTOCOL_VERSION_NOT_SUPPORTED)
            )
        supported = {str(cx.abstract_syntax): [*map(str, cx.transfer_syntax)] for cx in self._supported}
        self._acceptance, self._contexts, self.window = accept(request, supported, self._limits.max_operations)
        self._peer_maximum_length = request.maximum_length
        self.state, self._paused = State.STA3, True
        return AssociateRequested(request)

    def _in_pdu(self) -> Event | None:
        """Continue in a P-DATA-TF: read the next PDV header, or as much of the current PDV as there is.

        1. At the beginning of a PDV, read its header, and check that it may come now.
        2. Append a command's bytes, or pass a data set's bytes to `data_set`.
        3. At the end of the last PDV, act on the complete command or data set.
        """
        if not self._pdv_left and not self._pdv():
            return NEED_DATA
        n = min(self._pdv_left, len(self._buffer) - self._at)
        if n == 0 and self._pdv_left:
            return NEED_DATA
        complete = self._pdv_is_last and n == self._pdv_left
        with memoryview(self._buffer)[self._at : self._at + n] as fragment:
            self._at += n
            self._pdu_left -= n
            self._pdv_left -= n
            if self._pdv_is_command:
                return self._of_command(fragment, complete)
            self._length += n
            self.data_set(fragment)
        return self._data_set_complete() if complete else None

    def _pdv(self) -> bool:
        """Read the header of the next PDV, and check that it may come now; return False if it is not complete."""
        if self._pdu_left < PDV_HEADER.size:
            raise _Broken("P-DATA-TF ends within a presentation data value item")
        if len(self._buffer) - self._at < PDV_HEADER.size:
            return False
        length, self._pdv_context, header = PDV_HEADER.unpack_from(self._buffer, self._at)
        if not 2 <= length <= self._pdu_left - 4:
            raise _Broken(f"presentation data value of {length} bytes in a P-DATA-TF with {self._pdu_left - 4} left")
        self._at += PDV_HEADER.size
        self._pdu_left -= PDV_HEADER.size
        self._pdv_left = length - 2
        self._pdv_is_command, self._pdv_is_last = bool(header & 1), bool(header & 2)
        self._check_order()
        return True

    def _check_order(self) -> None:
        """Check that a PDV comes in order, and on the context of its message (PS3.8 Annex E.2, PS3.7 §6.3.1)."""
        if self._pdv_context not in self._contexts:
            raise _Broken(f"presentation context {self._pdv_context} was not accepted")
        expects_data_set = self._store is not None or self._refusal is not None
        if self._pdv_is_command == expects_data_set:
            raise _Broken(
                "a command in the middle of a data set" if expects_data_set else "a data set without a command"
            )
        if self._store is not None and self._store.context_id != self._pdv_context:
            raise _Broken("a data set in another presentation context than its command")

    def _of_command(self, fragment: memoryview, complete: bool) -> Event | None:
        """Take a fragment of a command set. Once it is complete, act on it."""
        if len(self._command) + len(fragment) > self._limits.max_command_bytes:
            raise _Broken(f"command set beyond max_command_bytes={self._limits.max_command_bytes}")
        if not complete:
            self._command += fragment
            return None
        command = bytes(self._command) + bytes(fragment)
        self._command.clear()
        form = self._form
        if form is not None and form.fits(self._pdv_context, command):
            return self._begin(form.store(command))
        return self._act(command)

    def _act(self, command: bytes) -> Event | None:
        """Read a complete command set (PS3.7 §6.3.1, Annex E), and act on it."""
        elements = elements_of(command)
        field = number(elements, 0x0100)
        if field & RESPONSE:
            raise _Broken(f"a DIMSE response, 0x{field:04X}, to no request")
        if field == C_CANCEL_RQ:
            return None  # the operation that it cancels is over
        message_id = elements.get(0x0110, b"")
        if len(message_id) != 2:
            raise _Broken("a command set without MessageID")
        sop_class = elements.get(0x0002, elements.get(0x0003, b""))
        abstract_syntax, transfer_syntax = self._contexts[self._pdv_context]
        has_data_set = number(elements, 0x0800) != NO_DATA_SET
        if field == C_STORE_RQ and abstract_syntax != VERIFICATION:
            uid = elements.get(0x1000, b"")
            store = StoreStarted(self._pdv_context, transfer_syntax, message_id, sop_class, uid)
            if has_data_set:
                self._form = StoreForm.of(command, store, self._stored(store, SUCCESS))
            else:
                self._without = store
            return self._begin(store)
        if field == C_ECHO_RQ and abstract_syntax == VERIFICATION and not has_data_set:
            return EchoRequested(self._response(self._pdv_context, field, message_id, sop_class, SUCCESS))
        status = SOP_CLASS_NOT_SUPPORTED if field == C_STORE_RQ else UNRECOGNIZED_OPERATION
        refusal = OperationRefused(field, self._response(self._pdv_context, field, message_id, sop_class, status))
        if not has_data_set:
            return refusal
        self._refusal, self.data_set = refusal, pass_over
        return None

    def _begin(self, store: StoreStarted) -> StoreStarted:
        self._store, self._length = store, 0
        return store

    def _data_set_complete(self) -> Event:
        """End a data set, after it was passed on; return the event."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            return refusal
        self.data_set = pass_over
        return self._finished(self._length)

    def _finished(self, length: int) -> InstanceFinished:
        """Let the C-STORE whose data set has come wait for its answer."""
        if self._store is not None:
            self._waiting.append(self._store)
        self._store, self._paused = None, len(self._waiting) >= self.window
        return InstanceFinished(length)

    # --- out ---

    def accept(self) -> bytes:
        """Return an A-ASSOCIATE-AC. Called after AssociateRequested."""
        self.state, self._paused = State.STA6, False
        return self._acceptance

    def reject(self, result: int, source: int, reason: int) -> bytes:
        """Return an A-ASSOCIATE-RJ (PS3.8 table 9-21). Called after AssociateRequested."""
        self._end()
        return struct.pack(">BBLBBBB", PduType.A_ASSOCIATE_RJ.value, 0, 4, 0, result, source, reason)

    def respond(
        self, status: int, comment: str = "", offending: int | None = None, store: StoreStarted | None = None
    ) -> bytes:
        """Return a C-STORE-RSP (PS3.7 §9.3.1.2, §C.4) to `store`, or to the one that has waited longest.

        Called after InstanceFinished.
        """
        if not self._waiting:
            raise RuntimeError("respond() without an instance that waits for it")
        store = store or self._waiting[0]
        self._waiting.remove(store)
        self._paused = False
        if status == SUCCESS and not comment and self._form is not None and self._form.answers(store):
            return self._form.success(store)
        extra = b"" if offending is None else element(0x0901, struct.pack("<HH", offending >> 16, offending & 0xFFFF))
        extra += element(0x0902, comment.encode("ascii", "replace")[:64]) if comment else b""
        return self._stored(store, status, extra)

    def _stored(self, store: StoreStarted, status: int, extra: bytes = b"") -> bytes:
        extra += element(0x1000, store.sop_instance_uid)
        return self._response(store.context_id, C_STORE_RQ, store.message_id, store.sop_class_uid, status, extra)

    def abort(self) -> bytes:
        """Return an A-ABORT by the service user. It may be called at any time."""
        self._end()
        return struct.pack(">BBLBBBB", PduType.A_ABORT.value, 0, 4, 0, 0, 0, 0)

    def _response(  # noqa: PLR0913, PLR0917 - one parameter an element
        self, context_id: int, field: int, message_id: bytes, sop_class_uid: bytes, status: int, extra: bytes = b""
    ) -> bytes:
        """Return a DIMSE response as P-DATA-TF PDUs (PS3.7 §6.3.1), none longer than the peer accepts."""
        body = element(0x0002, sop_class_uid) if sop_class_uid else b""
        body += element(0x0100, struct.pack("<H", field | RESPONSE)) + element(0x0120, message_id)
        body += element(0x0800, struct.pack("<H", NO_DATA_SET)) + element(0x0900, struct.pack("<H", status)) + extra
        message = element(0x0000, struct.pack("<L", len(body))) + body
        room = max(1, (self._peer_maximum_length or MAXIMUM_LENGTH) - 6)
        pdus = b""
        for start in range(0, len(message), room):
            part = message[start : start + room]
            header = 0b11 if start + room >= len(message) else 0b01
            pdus += struct.pack(">BBLLBB", PduType.P_DATA_TF.value, 0, len(part) + 6, len(part) + 2, context_id, header)
            pdus += part
        return pdus

    def _end(self) -> None:
        self.state = State.STA13
        self._without, self._paused = None, False
        self._buffer, self._at = bytearray(), 0


def _abort(reason: int) -> bytes:
    """Return an A-ABORT by the service provider (PS3.8 §9.3.8)."""
    return struct.pack(">BBLBBBB", PduType.A_ABORT.value, 0, 4, 0, 0, 2, reason)
