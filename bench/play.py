"""`make play`: a server, a gateway, and senders that go on slowly, to be watched on the live page until Ctrl-C.

Every sender shows something else; SHOWS has it in words. What they send are copies of pydicom's test images, under new
UIDs. All of it lives on loopback ports that were free and in one temporary folder.
"""

import argparse
import itertools
import random
import signal
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)
from rich.console import Console

from bench.demo import by_series, studies
from bench.rig.processes import ProcessFailed, gateway, server
from bench.rig.senders import copies, sending

SHOWS = {
    "ARCHIVE": "is a PACS and is asked: verified; it keeps an image back now and then: missing",
    "CT1": "sends until it is silent: idle",
    "MR2": "sends an image after the verdict now and then: was too early",
    "CR3": "says how many images there will be: expected; sends one under a wrong PatientID now and then: conflict",
}
PAUSE_S = 0.6  # between two images of a sender
PAUSES = 3, 12  # of that length between two of its series, at least and at most
RARELY = 8  # series from one late image or other patient to the next
KEPT_BACK = 3  # series from one incomplete series of the PACS to the next
LOOK_S = 0.2  # between two looks: whether a series has its verdict, whether all processes run
SETTINGS = {
    "id": "play",
    "missing_timeout_s": 10,  # what the PACS keeps back is said within the first minute
    "idle_max_s": 20,  # MR2 is late on purpose; the gateway would learn to wait ever longer for it
    "drain_timeout_s": 5,
    "min_free_bytes": 0,  # nothing here is to be kept
}
FROM_A_TERMINAL = {signal.SIGINT, signal.SIGHUP}  # which sends them to every process started there

Series = list[Path]


def main() -> int:
    """Play until SIGINT, SIGTERM or SIGHUP; exit code 0 if nothing failed until then."""
    parser = argparse.ArgumentParser(prog="make play", description=__doc__)
    parser.add_argument("--pause-s", type=float, default=PAUSE_S, help="between two images of a sender")
    pause_s = parser.parse_args().pause_s
    console, stop = Console(soft_wrap=True, highlight=False), threading.Event()
    for number in FROM_A_TERMINAL | {signal.SIGTERM}:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: stop.set())
    console.print("play: starts a server and a gateway")
    try:
        with tempfile.TemporaryDirectory(prefix="series-gateway-") as folder:
            _play(console, Path(folder), stop, pause_s)
    except (ProcessFailed, RuntimeError, httpx.HTTPError, OSError) as error:
        console.print(f"play: {error}", markup=False)
        return 1
    console.print("play: ended; nothing of it is left")
    return 0


def _play(console: Console, folder: Path, stop: threading.Event, pause_s: float) -> None:
    """Raises what a process or a sender failed with."""
    archive = Archive()
    with ExitStack() as stack:
        dicom_port = stack.enter_context(archive.answering())
        with deaf_to_the_terminal():  # or Ctrl-C ended the server before the gateway has told it the last series
            server_process, url = stack.enter_context(server(folder))
            pacs = f"ARCHIVE@127.0.0.1:{dicom_port}"
            gateway_process, port = stack.enter_context(gateway(folder, url, pacs=pacs, **SETTINGS))
        _tell(console, url, port)
        pool = stack.enter_context(ThreadPoolExecutor(thread_name_prefix="sender"))
        stack.callback(stop.set)
        stage = Stage(url, port, stop, pause_s)
        senders = [pool.submit(stage.repeat, sender) for sender in _senders(stage, archive)]
        while not stop.wait(LOOK_S):
            for process in (server_process, gateway_process):
                process.look()
            for sender in senders:
                if sender.done():
                    sender.result()
        console.print("play: ends")


def _tell(console: Console, url: str, port: int) -> None:
    console.print(f"play: the live page is [bold]{url}[/bold] until Ctrl-C. Who sends, and what that shows:")
    for ae_title, what in SHOWS.items():
        console.print(f"  {ae_title:8} {what}", markup=False)
    console.print(f"Your own image joins them: storescu -xs -aec STORESCP 127.0.0.1 {port} FILE", markup=False)


@contextmanager
def deaf_to_the_terminal() -> Iterator[None]:
    """What is started within never gets the terminal's signals, which are for the one that started it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_A_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the senders ------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Where senders send to, how slowly, and until when."""

    url: str
    port: int
    stop: threading.Event
    pause_s: float

    def repeat(self, send_one: Callable[[int], None]) -> None:
        """Send one series after the other, numbered, until the end."""
        for number in itertools.count():
            send_one(number)
            if self.stop.wait(self.pause_s * random.uniform(*PAUSES)):
                return

    def send(self, ae_title: str, images: Sequence[Dataset]) -> None:
        """Over one association; what is not sent at the end stays unsent."""
        with closing(sending(images, self.port, ae_title)) as sent:
            for _ in sent:
                if self.stop.wait(self.pause_s):
                    return

    def stored(self, ds: Dataset, what: str) -> bool:
        """Wait until the row of the image's series has this; False where the end comes first."""
        while not self.stop.wait(LOOK_S):
            answer = httpx.get(f"{self.url}/series/{ds.SeriesInstanceUID}", timeout=30, trust_env=False)
            if answer.status_code == 200 and answer.json()[what]:
                return True
        return False


def _senders(stage: Stage, archive: "Archive") -> list[Callable[[int], None]]:
    """Each sends a series; its number says whether something out of the ordinary happens to it."""
    found = _by_modality()
    radiographs = [path for series in found["CR"] for path in series]  # of series with one image each
    longest = max(found["CT"], key=len)
    short = [series for series in found["CT"] + found["MR"] if 3 < len(series) < len(longest)]

    def from_archive(number: int) -> None:
        images = copies(random.choice(short))
        archive.hold(images)
        stage.send("ARCHIVE", images[:-1] if number % KEPT_BACK == 1 else images)

    def from_ct(_: int) -> None:
        stage.send("CT1", copies(longest))

    def from_mr(number: int) -> None:
        images = copies(random.choice([series for series in found["MR"] if len(series) > 1]))
        late = number % RARELY == 0
        stage.send("MR2", images[:-1] if late else images)
        if late and stage.stored(images[0], "Verdict"):
            stage.send("MR2", images[-1:])

    def from_cr(number: int) -> None:
        images = copies(radiographs)
        for ds in images:
            ds.NumberOfSeriesRelatedInstances = len(images)
        if number % RARELY:
            stage.send("CR3", images)
            return
        stage.send("CR3", images[:-1])
        if stage.stored(images[0], "Verdict"):
            stage.send("CR3", [_of_another_patient(images[-1])])
        if stage.stored(images[0], "Conflicts"):
            stage.send("CR3", images[-1:])

    return [from_archive, from_ct, from_mr, from_cr]


def _of_another_patient(ds: Dataset) -> Dataset:
    other = deepcopy(ds)
    other.PatientID = f"{ds.PatientID}-2"
    return other


def _by_modality() -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = defaultdict(list)
    for series in by_series(studies()).values():
        found[str(pydicom.dcmread(series[0], stop_before_pixels=True).Modality)].append(series)
    return found


# --- the PACS ---------------------------------------------------------------------------------------------------


@dataclass
class Archive:
    """A PACS that answers C-FIND: stock pynetdicom. It may hold more than it sends."""

    _held: dict[str, list[Dataset]] = field(default_factory=dict)
    """By Series Instance UID."""

    def hold(self, images: list[Dataset]) -> None:
        self._held[str(images[0].SeriesInstanceUID)] = images

    @contextmanager
    def answering(self) -> Iterator[int]:
        """Yields its port."""
        ae = AE("ARCHIVE")
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(Verification)
        scp = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, self._find)])
        assert scp is not None  # noqa: S101 - of what does not block
        try:
            yield int(scp.server_address[1])
        finally:
            ae.shutdown()

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """At SERIES level how many images it has, at IMAGE level which."""
        level, images = event.identifier.QueryRetrieveLevel, self._held.get(event.identifier.SeriesInstanceUID, [])
        for ds in images if level == "IMAGE" else images[:1]:
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            answer.StudyInstanceUID, answer.SeriesInstanceUID = ds.StudyInstanceUID, ds.SeriesInstanceUID
            if level == "IMAGE":
                answer.SOPInstanceUID, answer.SOPClassUID = ds.SOPInstanceUID, ds.SOPClassUID
            else:
                answer.NumberOfSeriesRelatedInstances = len(images)
            yield 0xFF00, answer


if __name__ == "__main__":
    sys.exit(main())
