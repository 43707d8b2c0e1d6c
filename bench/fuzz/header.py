"""Any bytes as a data set in any transfer syntax: an Instance or HeaderError, nothing else."""

import contextlib
import sys
from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(include=["dicom.header"]):
    from dicom.header import HeaderError, read_instance

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
NOW = datetime.now(UTC)


def test_one_input(data: bytes) -> None:
    """The first byte chooses the transfer syntax."""
    if data:
        with contextlib.suppress(HeaderError):
            read_instance(
                data[1:],
                transfer_syntax_uid=SYNTAXES[data[0] % len(SYNTAXES)],
                calling_ae_title="FUZZ",
                peer_address="",
                received_at=NOW,
            )


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
