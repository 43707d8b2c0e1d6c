"""Any bytes as an A-ASSOCIATE-RQ: a Request, whose answer can be made, or Unreadable, nothing else."""

import contextlib
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["dicom.associate"]):
    from dicom.associate import Unreadable, accept, read

from bench.rig.senders import associate_rq

FIXED = associate_rq()[:74]  # PS3.8 table 9-11: what stands before the items


def test_one_input(data: bytes) -> None:
    """The items of a request, or where the first byte is odd, all of it."""
    with contextlib.suppress(Unreadable):
        accept(read(data[1:] if data[:1] and data[0] & 1 else FIXED + data[1:]), {})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
