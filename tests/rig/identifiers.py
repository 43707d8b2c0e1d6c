"""Answers of a PACS that no library would encode, byte by byte, and what gives them without a PACS."""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from tests.rig.factories import SERIES
from tests.rig.foreign_pacs import UIDS, Find


class Bytes(Dataset):
    """An identifier that is sent as these bytes."""

    sent: bytes


def as_bytes(encoded: bytes) -> Bytes:
    """Returns such an identifier."""
    ds = Bytes()
    ds.sent = encoded
    return ds


def element(tag: int, value: bytes) -> bytes:
    """In implicit VR little endian."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


COUNT, SERIES_UID, SOP_UID, SOP_CLASS = 0x00201209, 0x0020000E, 0x00080018, 0x00080016


def raw(*values: tuple[int, bytes], series: bytes = SERIES.encode()) -> tuple[int, Bytes]:
    """A pending answer with these elements, as they are."""
    elements = sorted([*values, (SERIES_UID, series)])
    return 0xFF00, as_bytes(b"".join(element(tag, value) for tag, value in elements))


def listing(*uids: bytes, count: bytes | None = None) -> Find:
    """Lists these at IMAGE level; with that as count at SERIES level."""

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "IMAGE":
            yield from (raw((SOP_UID, uid), (SOP_CLASS, CTImageStorage.encode())) for uid in uids)
        elif count is not None:
            yield raw((COUNT, count))

    return find


ENCODED = [uid.encode() for uid in UIDS]
UNREADABLE = [
    b"12 images ",
    b"1.0 ",
    b"-1",
    b"1\\1 ",
    b"many",
    b"2147483648",
    b"9999999999999 ",
    b"\xff\xfe",
    b"\xb2 ",
    b"3\x003 ",
]
NO_UIDS = [
    b"",
    b"1." * 65,
    b"1.2\\1.3",
    b"1.2\x00.3",
    b"\xff\xfe",
    "1.2.٣".encode(),
]
Nonsense = st.sampled_from([*UNREADABLE, *NO_UIDS, *ENCODED, b"3", b""]) | st.binary(max_size=70)
TAGS = st.sampled_from([COUNT, SERIES_UID, SOP_UID, SOP_CLASS, 0x00080005, 0x00080052, 0x00100010]) | st.integers(
    0, 2**32 - 1
)
IDENTIFIERS = st.lists(st.tuples(TAGS, Nonsense), max_size=6).map(lambda es: b"".join(element(t, v) for t, v in es))


class Said:
    """Instead of an association: these identifiers, as pynetdicom gives them."""

    def __init__(self, identifiers: Iterable[bytes]) -> None:
        self._identifiers = identifiers

    def send_c_find(self, *_: Any) -> Iterator[tuple[Dataset, Dataset | None]]:
        for encoded in self._identifiers:
            status = Dataset()
            status.Status = 0xFF00
            try:
                yield status, decode(BytesIO(encoded), True, True)
            except Exception:
                yield status, None
                yield status, None
        done = Dataset()
        done.Status = 0x0000
        yield done, None


class Scripted:
    """Instead of a line to a PACS."""

    timeout_s = 60.0

    def __init__(self, series: Iterable[bytes], listed: Iterable[bytes]) -> None:
        self._levels = [series, listed]

    @contextmanager
    def associated(self, *_: str) -> Iterator[Said]:
        yield Said(self._levels.pop(0))
