"""pacs.py against PACS that answer well, badly, late and not at all: stock pynetdicom as their SCP."""

import gc
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from models import Instance, SeriesKey
from pacs import Answer, Pacs, Question
from settings import GatewaySettings
from tests.factories import SERIES, STUDY, make_dataset

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
    return (match(ds, SOPInstanceUID=uid, SOPClassUID=CTImageStorage) for uid in uids)


def counts(*numbers: Any, uids: list[str] = UIDS) -> Find:
    """Says these counts at SERIES level, one a question, the last for ever; at IMAGE level what it has."""
    left = list(numbers)

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "IMAGE":
            yield from images(ds, uids)
        else:
            yield match(ds, NumberOfSeriesRelatedInstances=left.pop(0) if len(left) > 1 else left[0])

    return find


@contextmanager
def foreign_pacs(find: Find, get: list[Dataset] | None = None, called: list[str] | None = None) -> Iterator[int]:
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
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, handle_find), (evt.EVT_C_GET, handle_get)]
    with serving(ae, handlers) as port:
        yield port


@contextmanager
def serving(ae: AE, handlers: list[Any]) -> Iterator[int]:
    opened: list[Any] = []
    handlers = [*handlers, (evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc))]
    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        for assoc in opened:
            assoc.dul.kill_dul()  # else one that a test broke off may keep this process from ending
            assoc.dul.join(10)
            if assoc.dul.socket is not None:
                assoc.dul.socket.close()
        server.shutdown()
        with warnings.catch_warnings():  # stock pynetdicom leaves sockets of peers that went away to the collector
            warnings.simplefilter("ignore", ResourceWarning)
            opened.clear()
            gc.collect()


@asynccontextmanager
async def asking(
    port: int, known: list[str] | None = None, **settings: Any
) -> AsyncIterator[tuple[Pacs, list[Instance]]]:
    """A Pacs that may ask PACS1 on this port; what it fetches."""
    fetched: list[Instance] = []

    async def stored(_: SeriesKey) -> list[str]:
        return known or []

    async def handle_store(instance: Instance) -> int:
        fetched.append(instance)
        return 0x0000

    gateway = GatewaySettings(pacs=f"PACS1@127.0.0.1:{port}", pacs_timeout_s=settings.pop("timeout_s", 5), **settings)
    yield Pacs(gateway, stored, handle_store), fetched


async def ask(find: Find, here: list[str] = UIDS, known: list[str] | None = None, **settings: Any) -> Answer:
    with foreign_pacs(find) as port:
        async with asking(port, known, **settings) as (pacs, _):
            return await pacs.ask(Question(KEY, "PACS1", frozenset(here), fetch=False))


async def test_the_same_count_twice_confirms() -> None:
    answer = await ask(counts(3))
    assert (answer.count, answer.known, answer.confirmed, answer.problem) == (3, 3, True, None)


async def test_a_count_that_grows_meanwhile_does_not_confirm() -> None:
    answer = await ask(counts(3, 4))
    assert (answer.count, answer.confirmed, answer.more) == (4, False, True)


@pytest.mark.parametrize("count", ["", 0])
async def test_without_a_count_the_list_of_images_is_what_confirms(count: Any) -> None:
    levels: list[str] = []
    with foreign_pacs(counts(count), called=levels) as port:
        async with asking(port) as (pacs, _):
            answer = await pacs.ask(Question(KEY, "PACS1", frozenset(UIDS), fetch=False))
    assert (answer.count, answer.confirmed) == (3, True)
    assert levels == ["SERIES", "IMAGE"] * 2


async def test_as_many_other_images_do_not_confirm() -> None:
    answer = await ask(counts("", uids=[*UIDS[:2], "1.2.3"]))
    assert (answer.count, answer.confirmed, answer.missing) == (3, False, ("1.2.3",))


async def test_nothing_is_never_all() -> None:
    answer = await ask(counts(0, uids=[]), here=[])
    assert (answer.count, answer.confirmed) == (0, False)


async def test_more_at_the_pacs_names_what_is_missing() -> None:
    answer = await ask(counts(3), here=UIDS[:1])
    assert (answer.more, answer.confirmed, answer.missing) == (True, False, tuple(UIDS[1:]))


async def test_what_another_gateway_brought_counts() -> None:
    answer = await ask(counts(3), here=UIDS[:1], known=UIDS[1:])
    assert (answer.known, answer.here, answer.confirmed) == (3, 1, True)


async def test_fewer_at_the_pacs_than_here_does_not_confirm() -> None:
    answer = await ask(counts(2, uids=UIDS[:2]))
    assert (answer.count, answer.confirmed, answer.more) == (2, False, False)


async def test_an_answer_about_another_series_is_none() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield match(ds, series="1.2.3.4", NumberOfSeriesRelatedInstances=3, SOPInstanceUID=UIDS[0])

    answer = await ask(find)
    assert (answer.count, answer.confirmed) == (0, False)


async def test_a_refusal_is_said() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xA700, None

    answer = await ask(find)
    assert (answer.count, answer.confirmed, answer.problem) == (None, False, "C-FIND status 0xA700")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves its socket to the GC
async def test_a_pacs_that_is_down_is_said() -> None:
    async with asking(1) as (pacs, _):
        answer = await pacs.ask(Question(KEY, "PACS1", frozenset(UIDS), fetch=False))
    assert (answer.count, answer.confirmed, answer.problem) == (None, False, "cannot be reached")


async def test_a_pacs_that_serves_no_queries_is_said() -> None:
    ae = AE("PACS1")
    ae.add_supported_context(Verification)
    with serving(ae, []) as port:
        async with asking(port) as (pacs, _):
            answer = await pacs.ask(Question(KEY, "PACS1", frozenset(UIDS), fetch=False))
    assert answer.problem == "cannot be reached"  # pynetdicom aborts where no context was accepted


async def test_a_pacs_that_does_not_answer_is_given_up_on() -> None:
    stop = threading.Event()

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        stop.wait(20)
        yield from ()

    with foreign_pacs(find) as port:
        async with asking(port, timeout_s=0.2) as (pacs, _):
            answer = await pacs.ask(Question(KEY, "PACS1", frozenset(UIDS), fetch=False))
            stop.set()
    assert (answer.count, answer.confirmed, answer.problem) == (None, False, "broke off or did not answer in time")


async def test_a_pacs_whose_questions_never_end_is_left_alone_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, calls = threading.Event(), []

    def hangs(*_: Any, **__: Any) -> None:
        calls.append(1)
        stop.wait(20)

    monkeypatch.setattr("pacs._find", hangs)
    async with asking(1, timeout_s=0.05) as (pacs, _):
        question = Question(KEY, "PACS1", frozenset(UIDS), fetch=False)
        first, second = await pacs.ask(question), await pacs.ask(question)
    stop.set()
    assert (first.problem, first.confirmed) == ("did not end in time", False)
    assert (second.problem, len(calls)) == ("left alone, for it did not end in time before", 1)


async def test_only_what_is_missing_is_fetched_and_goes_the_way_of_what_was_sent() -> None:
    stored = []
    for n in range(1, 4):
        ds = make_dataset(str(n))
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        stored.append(ds)
    with foreign_pacs(counts(3), get=stored) as port:
        async with asking(port, fetch_missing="get") as (pacs, fetched):
            answer = await pacs.ask(Question(KEY, "PACS1", frozenset(UIDS[:1]), fetch=True))
    assert (answer.fetched, answer.confirmed) == (2, False)
    assert sorted(instance.sop_instance_uid for instance in fetched) == UIDS[1:]
    assert {instance.calling_ae_title for instance in fetched} == {"PACS1"}


async def test_a_count_that_is_no_number_is_said_without_its_text() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        status, answer = match(ds)
        answer.add_new(0x00201209, "LO", "many")
        yield status, answer

    answer = await ask(find, timeout_s=0.3)
    assert (answer.count, answer.confirmed) == (None, False)
    assert "many" not in str(answer.problem)
