"""PDUs and messages, byte by byte, as a sender of images says them."""

import struct

from pydicom.uid import CTImageStorage

from dicom.upper_layer import VERIFICATION

RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"
SOP_INSTANCE = "1.2.3.4"
DATA_SET = bytes(range(256)) * 20


def element(number: int, value: bytes) -> bytes:
    """Returns an element of a command set (PS3.7 Annex E), in implicit VR little endian."""
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(field: int, *, data_set: bool, sop_class: str = CTImageStorage, message_id: int = 7) -> bytes:
    """Returns a command set with this CommandField."""
    body = element(0x0002, sop_class.encode()) + element(0x0100, struct.pack("<H", field))
    body += element(0x0110, struct.pack("<H", message_id))
    body += element(0x0800, struct.pack("<H", 1 if data_set else 0x0101)) + element(0x1000, SOP_INSTANCE.encode())
    return element(0, struct.pack("<L", len(body))) + body


def pdv(context_id: int, header: int, fragment: bytes) -> bytes:
    """Returns a presentation-data-value item (PS3.8 §9.3.5.1)."""
    return struct.pack(">LBB", len(fragment) + 2, context_id, header) + fragment


def p_data(*pdvs: bytes) -> bytes:
    """Returns a P-DATA-TF PDU."""
    return struct.pack(">BBL", 4, 0, sum(map(len, pdvs))) + b"".join(pdvs)


def store(data_set: bytes = DATA_SET, *, pieces: int = 3, context_id: int = 1) -> bytes:
    """A C-STORE-RQ and its data set, in several P-DATA-TF PDUs."""
    size = len(data_set) // pieces + 1
    parts = [data_set[n : n + size] for n in range(0, len(data_set), size)]
    message = p_data(pdv(context_id, 3, command(1, data_set=True)))
    return message + b"".join(
        p_data(pdv(context_id, 2 if n == len(parts) - 1 else 0, part)) for n, part in enumerate(parts)
    )


ECHO = p_data(pdv(3, 3, command(0x30, data_set=False, sop_class=VERIFICATION)))
