"""Read and make DIMSE command sets: implicit VR little endian, group 0000 (PS3.7 §6.3.1, Annex E). Sans-IO."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dicom.associate import Unreadable

ELEMENT_HEADER = struct.Struct("<HHL")
PDV_AT = 12  # where the command set begins in a P-DATA-TF


class StoreStarted(NamedTuple):
    """A C-STORE-RQ has come (PS3.7 §9.3.1.1). The caller sets `data_set` to a function that takes the data set.

    If the peer says that there is no data set, InstanceFinished follows at once.
    """

    context_id: int
    transfer_syntax_uid: str
    message_id: bytes
    sop_class_uid: bytes
    sop_instance_uid: bytes


class StoreForm(NamedTuple):
    """What a sender's C-STORE-RQs, and their answers with 0x0000, have in common.

    Only the values of MessageID and AffectedSOPInstanceUID differ, and of the latter not the length.
    """

    first: StoreStarted
    before: bytes
    """The command set up to the value of MessageID."""
    between: bytes
    """The command set from there to the value of AffectedSOPInstanceUID, which is its end."""
    answer_before: bytes
    answer_between: bytes
    answer_after: bytes

    @classmethod
    def of(cls, command: bytes, store: StoreStarted, answer: bytes) -> "StoreForm | None":
        """Take the form of a C-STORE-RQ and its answer; None if the elements are in another order, or the PDUs many."""
        places = {element: (start, end) for element, start, end in _places(command)}
        (_, id_ends), (uid_starts, uid_ends) = places[0x0110], places.get(0x1000, (0, 0))
        if uid_ends != len(command) or id_ends > uid_starts or int.from_bytes(answer[2:6], "big") != len(answer) - 6:
            return None
        answer_at = PDV_AT + {e: start for e, start, _ in _places(answer[PDV_AT:])}[0x0120]
        padding = uid_ends - uid_starts & 1
        answer_ends = len(answer) - padding - (uid_ends - uid_starts)
        return cls(
            store,
            command[: id_ends - 2],
            command[id_ends:uid_starts],
            answer[:answer_at],
            answer[answer_at + 2 : answer_ends],
            bytes(padding),
        )

    def fits(self, context_id: int, command: bytes) -> bool:
        """Tell if a command set has this form."""
        at = len(self.before)
        return (
            context_id == self.first.context_id
            and len(command) == at + 2 + len(self.between) + len(self.first.sop_instance_uid)
            and command.startswith(self.before)
            and command.startswith(self.between, at + 2)
        )

    def store(self, command: bytes) -> StoreStarted:
        """Return the event of a command set that has this form."""
        context_id, transfer_syntax_uid, _, sop_class_uid, _ = self.first
        at = len(self.before)
        uid = command[at + 2 + len(self.between) :]
        return StoreStarted(context_id, transfer_syntax_uid, command[at : at + 2], sop_class_uid, uid)

    def answers(self, store: StoreStarted) -> bool:
        """Tell if the answer to a C-STORE-RQ has this form."""
        first = self.first
        return (
            store.context_id == first.context_id
            and store.sop_class_uid == first.sop_class_uid
            and len(store.sop_instance_uid) == len(first.sop_instance_uid)
        )

    def success(self, store: StoreStarted) -> bytes:
        """Return the answer with 0x0000."""
        uid = store.sop_instance_uid
        return b"".join((self.answer_before, store.message_id, self.answer_between, uid, self.answer_after))


def elements_of(command: bytes | bytearray) -> dict[int, bytes]:
    """Return a command set's elements by their number in group 0000 (implicit VR little endian, PS3.7 §6.3.1)."""
    return {element: bytes(command[start:end]) for element, start, end in _places(command)}


def _places(command: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each element of a command set, and where its value begins and ends."""
    at = 0
    while at + 8 <= len(command):
        group, element, length = ELEMENT_HEADER.unpack_from(command, at)
        at += 8
        if group != 0 or at + length > len(command):
            break
        yield element, at, at + length
        at += length
    if at != len(command):
        raise Unreadable("a command set that cannot be read")


def number(elements: dict[int, bytes], element: int) -> int:
    value = elements.get(element, b"")
    if len(value) != 2:
        raise Unreadable(f"a command set without (0000,{element:04X})")
    return int.from_bytes(value, "little")


def element(element: int, value: bytes) -> bytes:
    """Return an element of a command set, with its value padded to an even length."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, element, len(value)) + value
