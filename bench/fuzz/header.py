"""Any bytes as a data set in any transfer syntax, cut anywhere: read as it is when whole, or the same HeaderError."""

import sys
from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(include=["dicom.header", "dicom.walk", "dicom.deflate", "dicom.text"]):
    from dicom.header import ALWAYS, HeaderError, finish

from models import Instance

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
NOW = datetime.now(UTC)
KEPT_BYTES = 4096


def test_one_input(data: bytes) -> None:
    """The first byte chooses the transfer syntax, the second the length of the pieces it comes in."""
    if len(data) > 2:
        syntax, pieces = SYNTAXES[data[0] % len(SYNTAXES)], data[1] + 1
        assert read(data[2:], syntax, len(data)) == read(data[2:], syntax, pieces)  # noqa: S101


def read(data: bytes, syntax: str, pieces: int) -> Instance | str:
    """What is said of a data set that comes in pieces so long."""
    walk = ALWAYS.begin(syntax, KEPT_BYTES)
    for at in range(0, len(data), pieces):
        walk.feed(data[at : at + pieces])
        assert len(walk._rest) <= 2048  # noqa: S101
    try:
        return finish(walk, transfer_syntax_uid=syntax, calling_ae_title="FUZZ", peer_address="", received_at=NOW)
    except HeaderError as error:
        return str(error)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
