"""Any bytes into an Acceptor, cut in two: nothing may be raised, and nothing may be buffered beyond the limits."""

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["dicom.upper_layer"]):
    from dicom.upper_layer import Acceptor, Limits

from bench.rig.senders import associate_rq, feed

ESTABLISHED = associate_rq()
LIMITS = Limits(max_pdu_bytes=2**17, max_command_bytes=4096)


def test_one_input(data: bytes) -> None:
    """The first byte says whether an association stands already, and where the rest is cut."""
    if not data:
        return
    stream = (ESTABLISHED if data[0] & 1 else b"") + data[1:]
    acceptor = Acceptor([], LIMITS)
    feed(acceptor, stream, cut=len(stream) * data[0] // 256)
    assert len(acceptor._command) <= LIMITS.max_command_bytes  # noqa: S101


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
