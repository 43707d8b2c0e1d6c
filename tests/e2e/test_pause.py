"""A process that is stopped for a while, as by a paused virtual machine, takes no series for idle when it goes on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from bench.rig.processes import gateway, server
from bench.rig.senders import synthetic_series

IDLE_S, PAUSE_S = 1.0, 3.0
IMAGES = 12


def associations(port: int, each: bool) -> Iterator[Association]:
    """An association for every image, or the same for all."""
    ae = AE("PAUSER")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    assoc = None
    for _ in range(IMAGES):
        if assoc is None:
            assoc = ae.associate("127.0.0.1", port, ae_title="STORESCP")
            assert assoc.is_established
        yield assoc
        if each:
            assoc.release()
            assoc = None
    if assoc is not None:
        assoc.release()


def send(port: int, images: list[Dataset], each: bool, some_sent: threading.Event) -> None:
    """Each image when the one before was answered, and a little later: never as late as the idle time-out."""
    for n, (ds, assoc) in enumerate(zip(images, associations(port, each), strict=True)):
        assert assoc.send_c_store(ds).Status == 0
        if n == IMAGES // 3:
            some_sent.set()
        time.sleep(IDLE_S / 10)


@pytest.mark.slow
@pytest.mark.parametrize("each", [False, True], ids=["one association", "an association each"])
def test_a_gateway_that_was_stopped_reports_no_series_in_its_middle(tmp_path: Path, each: bool) -> None:
    policy = {"idle_policy": "fixed", "idle_timeout_s": IDLE_S}
    some_sent = threading.Event()
    with server(tmp_path) as (_, url), gateway(tmp_path, url, **policy) as (process, port):
        sender = threading.Thread(target=send, args=(port, synthetic_series(IMAGES), each, some_sent))
        sender.start()
        assert some_sent.wait(60)
        os.kill(process.popen.pid, signal.SIGSTOP)
        time.sleep(PAUSE_S)
        os.kill(process.popen.pid, signal.SIGCONT)
        sender.join(120)
        process.wait_for(lambda line: True if "series.reported" in line else None)
        reported = process.events("series.reported")
    assert [(event["revision"], event["instances"]) for event in reported] == [(1, IMAGES)]
