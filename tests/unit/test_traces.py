"""Recording when images come ends where the file cannot be written, and never the gateway."""

from pathlib import Path

from structlog.testing import capture_logs

from gateway.recorder import Recorder
from models import Association


def test_a_disk_that_is_full_ends_the_recording_once_and_nothing_else() -> None:
    with capture_logs() as logs, Recorder.open(Path("/dev/full"), lambda: 0.0) as recorder:
        assert recorder is not None
        for n in range(10_000):  # more than a buffer holds
            recorder.association(Association(n, "CT1", "::1", 0.0))
    assert [entry["event"] for entry in logs] == ["trace.ended"]
