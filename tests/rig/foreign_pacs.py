"""A PACS of stock pynetdicom that answers as a test wants it, and the gateway's way of asking it."""

import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from pynetdicom.transport import ThreadedAssociationServer

from common.settings import GatewaySettings
from gateway.pacs import Pacs
from gateway.questions import Question
from models import Instance, SeriesKey
from tests.rig.factories import SERIES, STUDY, make_dataset

KEY = SeriesKey(STUDY, SERIES, "P1")
UIDS = [f"{SERIES}.{n}" for n in range(1, 4)]
Find = Callable[[Dataset], Iterator[tuple[int, Dataset | None]]]


def match(ds: Dataset, **elements: Any) -> tuple[int, Dataset]:
    """A pending answer to a question."""
    answer = Dataset()
    answer.QueryRetrieveLevel = ds.QueryRetrieveLevel
    answer.StudyInstanceUID, answer.SeriesInstanceUID = STUDY, elements.pop("series", SERIES)
    for keyword, value in elements.items():
        setattr(answer, keyword, value)
    return 0xFF00, answer


def images(ds: Dataset, uids: list[str] = UIDS) -> Iterator[tuple[int, Dataset]]:
    """Returns pending answers at IMAGE level."""
    return (match(ds, SOPInstanceUID=uid, SOPClassUID=CTImageStorage) for uid in uids)


def counts(*numbers: Any, uids: list[str] = UIDS) -> Find:
    """Says these counts at SERIES level, one a question, the last for ever; at IMAGE level what it has."""
    left = list(numbers)

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "IMAGE":
            yield from images(ds, uids)
        elif ds.QueryRetrieveLevel == "SERIES":
            yield match(ds, NumberOfSeriesRelatedInstances=left.pop(0) if len(left) > 1 else left[0])

    return find


def uids_of(length: int) -> list[str]:
    """Returns the SOP Instance UIDs of the first images of the series."""
    return [f"{SERIES}.{n}" for n in range(1, length + 1)]


@contextmanager
def foreign_pacs(
    find: Find,
    get: list[Dataset] | None = None,
    called: list[str] | None = None,
    tls: ssl.SSLContext | None = None,
    syntaxes: Sequence[str] = DEFAULT_TRANSFER_SYNTAXES,
) -> Iterator[int]:
    """A PACS of stock pynetdicom; yields its port."""

    def handle_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if called is not None:
            called.append(str(event.identifier.QueryRetrieveLevel))
        yield from find(event.identifier)

    def handle_get(event: evt.Event) -> Iterator[Any]:
        asked = event.identifier.SOPInstanceUID
        wanted = [asked] if isinstance(asked, str) else list(asked)
        found = [ds for ds in get or [] if ds.SOPInstanceUID in wanted]
        yield len(found)
        for ds in found:
            yield 0xFF00, ds

    ae = AE("PACS1")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    for sop_class in (CTImageStorage, *sorted({str(ds.SOPClassUID) for ds in get or []} - {CTImageStorage})):
        ae.add_supported_context(sop_class, list(syntaxes), scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, handle_find), (evt.EVT_C_GET, handle_get)]
    with accepting(ae, handlers, tls) as port:
        yield port


@contextmanager
def accepting(ae: AE, handlers: list[Any], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Lets an AE take associations on a free port, which it yields."""
    opened: list[Any] = []  # association and socket, which stock pynetdicom leaves open where its peer went away
    handlers = [
        *handlers,
        (evt.EVT_CONN_OPEN, lambda event: opened.append((event.assoc, event.assoc.dul.socket.socket))),
    ]
    server: Any = ae.make_server(
        ("127.0.0.1", 0), evt_handlers=handlers, server_class=ThreadedAssociationServer, ssl_context=tls
    )
    ae._servers.append(server)  # as start_server does, which would look every half second only if it is to end
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # ends within so many seconds
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        for assoc, sock in opened:
            assoc.dul.kill_dul()  # else one that a test broke off may keep this process from ending
            assoc.dul.join(10)
            sock.close()
        server.shutdown()


Told = Callable[[SeriesKey], Awaitable[Collection[str] | None]]


@asynccontextmanager
async def asking(
    port: int, known: Collection[str] | Told | None = (), **settings: Any
) -> AsyncIterator[tuple[Pacs, list[Instance]]]:
    """A Pacs that may ask PACS1 on this port; what it fetches. `known` is what the server has: None, it cannot tell."""
    fetched: list[Instance] = []

    async def stored(_: SeriesKey) -> Collection[str] | None:
        return cast(Collection[str] | None, known)

    async def handle_store(instance: Instance) -> int:
        fetched.append(instance)
        return 0x0000

    undelivered = settings.pop("undelivered", None)
    options = {"pacs": f"PACS1@127.0.0.1:{port}", "pacs_timeout_s": settings.pop("timeout_s", 5)} | settings
    told = known if callable(known) else stored
    yield Pacs(GatewaySettings(**options), told, handle_store, undelivered=undelivered), fetched


def about(here: Collection[str] = UIDS, *, fetch: bool = False, **more: Any) -> Question:
    """Returns a question to PACS1 about a series of which these images are here."""
    return Question(KEY, "PACS1", frozenset(here), fetch=fetch, **more)


def held(sop: int, sop_class: str = CTImageStorage, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An image of the PACS."""
    ds = make_dataset(str(sop))
    ds.SOPClassUID = sop_class
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.PixelData = encapsulate([b"not decoded by anybody"])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    return ds


def study(ds: Dataset, series: Any = 2, instances: Any = 7, uid: str = STUDY) -> tuple[int, Dataset]:
    """A match at STUDY level."""
    answer = Dataset()
    answer.QueryRetrieveLevel, answer.StudyInstanceUID = "STUDY", uid
    if series is not None:
        answer.NumberOfStudyRelatedSeries = series
    if instances is not None:
        answer.NumberOfStudyRelatedInstances = instances
    return 0xFF00, answer


def saying(*answers: tuple[int, Dataset | None], images: int = 3) -> Find:
    """Says so many images at SERIES level, and this at STUDY level."""

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield from answers if ds.QueryRetrieveLevel == "STUDY" else counts(images)(ds)

    return find


NOTHING = Dataset()
"""Stands for a question where the answer does not depend on it."""
