"""pacs.py against PACS that answer well, badly, late and not at all: stock pynetdicom as their SCP."""

import asyncio
import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from common.errors import SeriesGatewayError
from common.settings import Peer
from dicom.query_retrieve import Found, find, get
from dicom.scu import CLASSES_AT_ONCE, Line, PacsUnavailable, retrieved, status_of
from gateway.questions import Answer
from models import Instance, SeriesKey, SeriesReport, Uid
from tests.rig.factories import SERIES, STUDY, make_dataset
from tests.rig.foreign_pacs import (
    KEY,
    UIDS,
    Find,
    Told,
    about,
    accepting,
    asking,
    counts,
    foreign_pacs,
    held,
    images,
    match,
    uids_of,
)
from tests.rig.identifiers import (
    COUNT,
    ENCODED,
    IDENTIFIERS,
    NO_UIDS,
    SOP_CLASS,
    SOP_UID,
    UNREADABLE,
    Bytes,
    Nonsense,
    Scripted,
    as_bytes,
    listing,
    raw,
)


async def ask(
    find: Find,
    here: Collection[str] = UIDS,
    known: Collection[str] | Told | None = (),
    revision: int = 1,
    **settings: Any,
) -> Answer:
    with foreign_pacs(find) as port:
        async with asking(port, known, **settings) as (pacs, _):
            return await pacs.ask(about(here, revision=revision))


async def never_asked(_: SeriesKey) -> list[str]:
    raise AssertionError("asked")


async def test_one_question_is_asked_once_and_its_answer_says_whose_it_is() -> None:
    levels: list[str] = []
    with foreign_pacs(counts(3), called=levels) as port:
        async with asking(port, never_asked) as (pacs, _):
            answer = await pacs.ask(about())
    assert answer == Answer("PACS1", frozenset(UIDS), known=3, count=3, confirmed=True)
    assert levels == ["SERIES", "STUDY"]


async def test_an_answer_carries_the_revision_of_its_question() -> None:
    assert (await ask(counts(3), revision=7)).revision == 7


async def test_a_stale_count_is_not_all_of_what_was_delivered_before_and_came_since() -> None:
    answer = await ask(counts(3), known=["1.2.1", "1.2.2", "1.2.3"], revision=2)
    assert (answer.count, answer.known, answer.confirmed) == (3, 6, False)


@pytest.mark.parametrize("count", ["", 0])
async def test_without_a_count_the_list_of_images_is_what_confirms(count: Any) -> None:
    levels: list[str] = []
    with foreign_pacs(counts(count), called=levels) as port:
        async with asking(port) as (pacs, _):
            answer = await pacs.ask(about())
    assert (answer.count, answer.confirmed, answer.problem) == (3, True, None)
    assert levels == ["SERIES", "STUDY", "IMAGE"]


async def test_as_many_other_images_do_not_confirm() -> None:
    answer = await ask(counts("", uids=[*UIDS[:2], "1.2.3"]))
    assert (answer.count, answer.confirmed, answer.missing) == (3, False, ("1.2.3",))


async def test_nothing_is_never_all() -> None:
    answer = await ask(counts(0, uids=[]), here=[])
    assert (answer.count, answer.confirmed) == (0, False)


async def test_more_at_the_pacs_names_what_is_missing() -> None:
    answer = await ask(counts(3), here=UIDS[:1])
    assert (answer.count, answer.confirmed, answer.missing) == (len(UIDS), False, tuple(UIDS[1:]))


async def test_what_another_gateway_brought_counts() -> None:
    answer = await ask(counts(3), here=UIDS[:1], known=UIDS[1:])
    assert (answer.known, answer.here, answer.confirmed) == (3, frozenset(UIDS[:1]), True)


async def test_fewer_at_the_pacs_than_here_does_not_confirm() -> None:
    answer = await ask(counts(2, uids=UIDS[:2]))
    assert (answer.count, answer.confirmed) == (2, False)


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


async def test_a_pacs_that_is_down_is_said() -> None:
    async with asking(1) as (pacs, _):
        answer = await pacs.ask(about())
    assert (answer.count, answer.confirmed, answer.problem) == (None, False, "cannot be reached")


async def test_a_pacs_that_serves_no_queries_is_said() -> None:
    ae = AE("PACS1")
    ae.add_supported_context(Verification)
    with accepting(ae, []) as port:
        async with asking(port) as (pacs, _):
            answer = await pacs.ask(about())
    assert answer.problem == "does not offer Study Root Query/Retrieve Information Model - FIND"


async def test_a_pacs_that_does_not_answer_is_given_up_on() -> None:
    stop = threading.Event()

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        stop.wait(20)
        yield from ()

    with foreign_pacs(find) as port:
        async with asking(port, timeout_s=2) as (pacs, _):
            answer = await pacs.ask(about())
            stop.set()
    assert (answer.count, answer.confirmed, answer.problem) == (None, False, "broke off or did not answer in time")


async def test_a_pacs_whose_questions_never_end_is_left_alone_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, calls = threading.Event(), []

    def hangs(*_: Any, **__: Any) -> None:
        calls.append(1)
        stop.wait(20)

    monkeypatch.setattr("gateway.pacs.find", hangs)
    async with asking(1, timeout_s=0.05) as (pacs, _):
        question = about()
        first, second = await pacs.ask(question), await pacs.ask(question)
    stop.set()
    assert (first.problem, first.confirmed) == ("did not end in time", False)
    assert (second.problem, len(calls)) == ("left alone, for it did not end in time before", 1)


async def test_a_question_that_waited_long_for_its_turn_has_its_own_time_and_a_long_queue_is_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wait for a turn and the question are bounded apart; only a PACS that hangs is left alone."""

    def slow(*_: Any, **__: Any) -> Found:
        time.sleep(0.3)
        return Found(1)

    monkeypatch.setattr("gateway.pacs.find", slow)
    async with asking(1, timeout_s=0.2) as (pacs, _):  # a turn is waited for 0.8 s, and a question as long
        answers = await asyncio.gather(*(pacs.ask(about()) for _ in range(40)))
        problems = {answer.problem for answer in answers}
        assert problems <= {None, "too many questions wait", "the server cannot tell what it has"}
        assert (await pacs.ask(about())).problem != "left alone, for it did not end in time before"


async def test_what_is_missing_is_named_only_where_that_is_asked_for() -> None:
    with foreign_pacs(counts(3)) as port:
        async with asking(port) as (pacs, _):
            answers = [await pacs.ask(about(UIDS[:1], quiet=quiet)) for quiet in (False, True)]
    assert [(answer.count, len(answer.missing)) for answer in answers] == [(3, 0), (3, 2)]


async def test_only_what_is_missing_is_fetched_and_goes_the_way_of_what_was_sent() -> None:
    with foreign_pacs(counts(3), get=[held(n) for n in range(1, 4)]) as port:
        async with asking(port, fetch_missing="get") as (pacs, fetched):
            answer = await pacs.ask(about(UIDS[:1], fetch=True))
    assert (answer.fetched, answer.confirmed) == (2, False)
    assert sorted(instance.sop_instance_uid for instance in fetched) == UIDS[1:]
    assert {instance.calling_ae_title for instance in fetched} == {"PACS1"}


def unclassified(uids: Sequence[str]) -> Find:
    """As DCMTK's dcmqrscp answers: neither the count nor the SOP Class, which are optional."""

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "IMAGE":
            yield from (match(ds, SOPInstanceUID=uid) for uid in uids)

    return find


async def fetched_of(
    stored: list[Dataset], *, listed: Sequence[str] = UIDS, classes: Collection[str] = (CTImageStorage,)
) -> tuple[Answer, list[Instance]]:
    """What comes of a PACS that accepts one transfer syntax a context, as all do, where its first image is here."""
    with foreign_pacs(unclassified(listed), get=stored, syntaxes=ALL_TRANSFER_SYNTAXES) as port:
        async with asking(port, fetch_missing="get") as (pacs, fetched):
            return await pacs.ask(about(UIDS[:1], fetch=True, classes=frozenset(classes))), fetched


async def test_images_whose_class_the_pacs_does_not_say_are_fetched_as_those_at_hand() -> None:
    answer, fetched = await fetched_of([held(2), held(3)])
    assert (answer.count, answer.fetched, answer.problem) == (3, 2, None)
    assert {instance.sop_instance_uid for instance in fetched} == set(UIDS[1:])


async def test_images_of_any_compression_are_fetched_as_they_are() -> None:
    syntaxes = [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless, ImplicitVRLittleEndian]
    stored = [held(n, syntax=syntax) for n, syntax in enumerate(syntaxes, 2)]
    answer, fetched = await fetched_of(stored, listed=uids_of(5))
    assert (answer.fetched, answer.problem) == (4, None)
    assert {instance.transfer_syntax_uid for instance in fetched} == set(syntaxes)


async def test_images_of_more_classes_than_one_association_can_propose_are_fetched() -> None:
    classes = [MRImageStorage, EnhancedMRImageStorage, SecondaryCaptureImageStorage, SegmentationStorage]
    assert len(classes) > CLASSES_AT_ONCE
    stored = [held(n, sop_class) for n, sop_class in enumerate(classes, 2)]
    answer, fetched = await fetched_of(stored, listed=uids_of(5), classes=classes)
    assert {instance.sop_class_uid for instance in fetched} == set(classes)
    assert (answer.fetched, answer.problem) == (4, None)


async def test_what_the_pacs_names_and_does_not_give_is_said() -> None:
    answer, fetched = await fetched_of([held(2)])
    assert (answer.count, answer.missing, answer.fetched) == (3, tuple(UIDS[1:]), 1)
    assert answer.problem == "it gave 1 of 2 missing images"
    assert len(fetched) == 1


async def test_what_came_before_a_retrieve_failed_counts_as_fetched() -> None:
    def refused(event: evt.Event) -> Iterator[Any]:
        yield 2
        yield 0xFF00, held(2)
        yield 0xA702, None

    ae = AE("PACS1")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    listed = (evt.EVT_C_FIND, lambda event: counts(3)(event.identifier))
    with accepting(ae, [listed, (evt.EVT_C_GET, refused)]) as port:
        async with asking(port, fetch_missing="get") as (pacs, fetched):
            answer = await pacs.ask(about(UIDS[:1], fetch=True))
    assert (answer.count, answer.fetched, len(fetched)) == (3, 1, 1)
    assert answer.problem == "fetching: retrieve status 0xA702"


class Giving:
    """Instead of a line to a PACS: one that gives this image until the association is aborted, and answers nothing."""

    peer, timeout_s = Peer("PACS1", "127.0.0.1", 104), 0.02

    def __init__(self, ds: Dataset) -> None:
        self.request = SimpleNamespace(
            DataSet=BytesIO(encode(ds, False, True) or b""),
            AffectedSOPClassUID=CTImageStorage,
            AffectedSOPInstanceUID=UIDS[1],
        )
        self.context = SimpleNamespace(transfer_syntax=ExplicitVRLittleEndian)
        self.assoc, self.aborted = self, False

    @contextmanager
    def associated(self, *_: str, evt_handlers: list[Any], **__: Any) -> Iterator["Giving"]:
        ((_, self.handle),) = evt_handlers
        yield self

    def send_c_get(self, *_: Any) -> Iterator[tuple[Dataset, None]]:
        while not self.aborted:
            self.handle(self)
        yield Dataset(), None

    def abort(self) -> None:
        self.aborted = True


def stored_of(ds: Dataset) -> list[Instance]:
    """What is stored of an image that a PACS gives, over and over, for the second one."""
    stored: list[Instance] = []

    def store(instance: Instance) -> int:
        stored.append(instance)
        return 0x0000

    with pytest.raises(PacsUnavailable, match="broke off"):
        get(cast(Line, Giving(ds)), key=KEY, missing={UIDS[1]: CTImageStorage}, store=store)
    return stored


def test_a_pacs_that_gives_without_end_holds_no_thread() -> None:
    assert len(stored_of(held(2))) > 1


def test_what_is_fetched_has_the_class_of_its_command_where_it_has_none() -> None:
    ds = held(2)
    del ds.SOPClassUID
    assert {instance.sop_class_uid for instance in stored_of(ds)} == {CTImageStorage}


def test_what_is_fetched_has_to_be_the_instance_of_its_command() -> None:
    assert not stored_of(held(3))


async def test_a_pacs_that_says_no_class_where_none_is_at_hand_is_said() -> None:
    answer, _ = await fetched_of([held(2)], classes=())
    assert answer.problem == "fetching: it does not say the SOP Classes of the missing images"
    assert (answer.count, answer.missing) == (3, tuple(UIDS[1:]))


# --- what is known here -----------------------------------------------------------------------------------------


async def test_what_waits_in_the_journal_is_not_missing() -> None:
    async def undelivered(_: SeriesKey) -> list[str]:
        return UIDS[:2]

    answer = await ask(counts(3), here=UIDS[2:], revision=2, undelivered=undelivered)
    assert (answer.known, answer.confirmed, answer.missing) == (3, True, ())


async def unreadable(_: SeriesKey) -> list[str]:
    raise SeriesGatewayError("the journal")


@pytest.mark.parametrize(
    ("held", "who"),
    [({"known": None}, "server"), ({"undelivered": unreadable}, "journal"), ({"known": unreadable}, "server")],
)
async def test_where_what_is_known_cannot_be_told_nothing_is_missing_nor_fetched(held: Any, who: str) -> None:
    with foreign_pacs(counts(3), get=[make_dataset("2")]) as port:
        async with asking(port, fetch_missing="get", **held) as (pacs, fetched):
            answer = await pacs.ask(about(UIDS[:1], fetch=True, revision=2))
    assert (answer.count, answer.known, answer.confirmed, answer.missing, answer.fetched) == (3, 1, False, (), 0)
    assert answer.problem == f"the {who} cannot tell what it has"
    assert fetched == []


async def test_all_of_it_by_number_is_not_all_where_the_server_cannot_tell() -> None:
    answer = await ask(counts(3), known=None, revision=2)
    assert (answer.count, answer.confirmed) == (3, False)


async def test_the_journal_is_asked_before_the_server_so_that_what_is_delivered_in_between_is_known() -> None:
    waiting, stored = list(UIDS[1:]), list(UIDS[:1])

    async def undelivered(_: SeriesKey) -> list[str]:
        told = list(waiting)
        stored.extend(waiting)
        waiting.clear()
        return told

    async def known(_: SeriesKey) -> list[str]:
        return list(stored)

    answer = await ask(counts(3), here=UIDS[:1], known=known, revision=2, undelivered=undelivered)
    assert (answer.confirmed, answer.missing) == (True, ())


# --- what fails later does not take back what was said -------------------------------------------------------------


async def test_a_count_stands_where_the_list_of_images_is_refused() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield match(ds, NumberOfSeriesRelatedInstances=3) if ds.QueryRetrieveLevel == "SERIES" else (0xA700, None)

    answer = await ask(find, here=UIDS[:1])
    assert (answer.count, answer.missing) == (3, ())
    assert answer.problem == "listing its images: C-FIND status 0xA700"


async def test_a_count_and_what_is_missing_stand_where_the_retrieve_is_refused() -> None:
    with foreign_pacs(counts(3)) as port:
        async with asking(port, fetch_missing="move") as (pacs, _):  # which this PACS does not offer
            answer = await pacs.ask(about(UIDS[:1], fetch=True))
    assert (answer.count, answer.missing, answer.fetched) == (3, tuple(UIDS[1:]), 0)
    assert answer.problem == "fetching: does not offer Study Root Query/Retrieve Information Model - MOVE"


async def test_a_list_that_is_shorter_than_the_count_lacks_something_and_the_count_stands() -> None:
    answer = await ask(counts(300, uids=uids_of(100)), here=["1.2.3"])
    assert (answer.count, len(answer.missing), answer.problem) == (300, 100, "it has 300 and lists 100")


async def test_a_list_that_is_longer_than_the_count_is_the_later_word() -> None:
    answer = await ask(counts(2, uids=UIDS), here=UIDS[:1])
    assert (answer.count, answer.missing) == (3, tuple(UIDS[1:]))


# --- a list that was cut off, with Success ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [100, 128, 200, 250, 256, 500, 512, 1000])
async def test_a_list_of_a_round_length_is_not_whole_where_no_longer_one_was_seen(length: int) -> None:
    listed = uids_of(length)
    answer = await ask(counts("", uids=listed), here=listed, timeout_s=60)
    assert (answer.count, answer.confirmed) == (None, False)
    assert answer.problem == f"its list of {length} may be cut off: it never listed more"


@pytest.mark.parametrize("length", [1, 50, 64, 99, 101, 130, 255])
async def test_a_list_of_another_length_is_whole(length: int) -> None:
    listed = uids_of(length)
    answer = await ask(counts("", uids=listed), here=listed, timeout_s=60)
    assert (answer.count, answer.confirmed, answer.problem) == (length, True, None)


async def test_a_round_list_is_whole_where_the_pacs_has_listed_more_before() -> None:
    longer, round_ = uids_of(101), uids_of(100)
    left = [longer, round_]

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "IMAGE":
            yield from images(ds, left.pop(0))

    with foreign_pacs(find) as port:
        async with asking(port) as (pacs, _):
            answers = [await pacs.ask(about(listed)) for listed in (longer, round_)]
    assert [answer.confirmed for answer in answers] == [True, True]


async def test_a_round_list_is_whole_where_the_pacs_was_asked_for_what_is_missing_of_more_before() -> None:
    longer, round_ = uids_of(101), uids_of(100)
    numbers, left = ["101", ""], [longer, round_]

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "SERIES":
            yield match(ds, NumberOfSeriesRelatedInstances=numbers.pop(0))
        elif ds.QueryRetrieveLevel == "IMAGE":
            yield from images(ds, left.pop(0))

    with foreign_pacs(find) as port:
        async with asking(port) as (pacs, _):
            answers = [await pacs.ask(about(here)) for here in (longer[1:], round_)]
    assert [(answer.missing, answer.confirmed) for answer in answers] == [(tuple(longer[:1]), False), ((), True)]


async def test_what_a_cut_off_list_names_is_missing_all_the_same() -> None:
    answer = await ask(counts("", uids=uids_of(100)), here=uids_of(98))
    assert (answer.count, answer.missing) == (None, tuple(uids_of(100)[98:]))


async def test_a_limit_counts_what_is_of_other_series_too() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "IMAGE":
            yield from images(ds)
            yield from (match(ds, series="1.2.9", SOPInstanceUID=f"1.2.9.{n}") for n in range(97))

    answer = await ask(find)
    assert (answer.count, answer.confirmed) == (None, False)


# --- nonsense --------------------------------------------------------------------------------------------------------


@pytest.fixture
def any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the stock PACS send what pydicom would not encode."""
    monkeypatch.setattr(
        "pynetdicom.service_class.encode", lambda ds, *how: ds.sent if isinstance(ds, Bytes) else encode(ds, *how)
    )


def found_in(series: Iterable[bytes], listed: Iterable[bytes]) -> Found:
    """What is read of these identifiers, at the two levels."""
    return find(cast(Line, Scripted(series, listed)), key=KEY)


def of_images(*uids: bytes) -> list[bytes]:
    return [raw((SOP_UID, uid), (SOP_CLASS, CTImageStorage.encode()))[1].sent for uid in uids]


@pytest.mark.parametrize("count", UNREADABLE)
def test_a_count_that_cannot_be_one_is_left_and_the_list_of_images_counts(count: bytes) -> None:
    found = found_in([raw((COUNT, count))[1].sent], of_images(*ENCODED))
    assert (found.count, found.is_all(UIDS)) == (3, True)
    assert found.problem == "1 of 1 matches at SERIES level cannot be used"


@pytest.mark.parametrize("count", [b"3", b"0003", b" 3", b"3 ", b"+3", b"3\0"])
def test_a_count_is_read_as_an_integer_string_may_be_written(count: bytes) -> None:
    assert found_in([raw((COUNT, count))[1].sent], []) == Found(3)


@pytest.mark.usefixtures("any_bytes")
async def test_a_pacs_that_cannot_count_confirms_by_its_list() -> None:
    answer = await ask(listing(*ENCODED, count=b"12 images "))
    assert (answer.count, answer.confirmed) == (3, True)


@pytest.mark.usefixtures("any_bytes")
async def test_two_counts_of_one_series_are_none() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "SERIES":
            yield from (raw((COUNT, count)) for count in (b"3", b"4"))
        else:
            yield from listing(*ENCODED)(ds)

    assert (await ask(find)).count == 3


@pytest.mark.parametrize("uid", NO_UIDS)
def test_a_list_with_what_is_no_uid_is_not_whole_and_the_rest_of_it_is_used(uid: bytes) -> None:
    found = found_in([], of_images(*ENCODED, uid))
    assert (found.count, list(found.images or ())) == (None, UIDS)
    assert found.problem == "1 of 4 matches at IMAGE level cannot be used"


@pytest.mark.usefixtures("any_bytes")
async def test_what_can_be_used_of_a_list_is_missing_all_the_same() -> None:
    answer = await ask(listing(*ENCODED, b"1.2.abc"), here=UIDS[:2])
    assert (answer.count, answer.confirmed, answer.missing) == (None, False, (UIDS[2],))


@pytest.mark.usefixtures("any_bytes")
async def test_a_count_stands_beside_a_list_that_cannot_be_used() -> None:
    answer = await ask(listing(b"1.2.abc", UIDS[1].encode(), count=b"5"), here=UIDS[:1])
    assert (answer.count, answer.missing) == (5, (UIDS[1],))
    assert "1 of 2 matches at IMAGE level cannot be used" in str(answer.problem)


@pytest.mark.usefixtures("any_bytes")
@pytest.mark.filterwarnings("ignore")
async def test_an_identifier_that_cannot_be_decoded_is_counted_once() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield from listing(*ENCODED)(ds)
        yield 0xFF00, as_bytes(b"\x20\x00\x0e\x00\xff")

    answer = await ask(find)
    assert (answer.count, answer.confirmed) == (None, False)
    assert "1 of 4 matches at IMAGE level cannot be used" in str(answer.problem)


async def test_an_image_that_is_listed_twice_counts_once() -> None:
    answer = await ask(counts("", uids=[*UIDS, *UIDS]))
    assert (answer.count, answer.confirmed) == (3, True)


async def test_a_list_that_does_not_end_is_none() -> None:
    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield from images(ds, [f"1.2.{n}" for n in range(120)])

    with pytest.MonkeyPatch.context() as few:
        few.setattr("dicom.scu.MAX_MATCHES", 100)
        answer = await ask(find)
    assert (answer.count, answer.confirmed) == (None, False)
    assert str(answer.problem).startswith("not done after 101 matches")


async def test_a_pacs_that_goes_on_listing_holds_no_thread_for_longer_than_one_answer_may_take() -> None:
    stop = threading.Event()

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        while not stop.wait(0.05):
            yield match(ds, NumberOfSeriesRelatedInstances=3)

    answer = await ask(find, timeout_s=0.5)
    stop.set()
    assert str(answer.problem).startswith("not done after ")
    assert "pacs_timeout_s=0.5" in str(answer.problem)


MATCHES = st.lists(
    IDENTIFIERS
    | st.binary(max_size=40)
    | st.tuples(st.just(COUNT) | st.just(SOP_UID), Nonsense).map(lambda e: raw(e)[1].sent),
    max_size=5,
)


@pytest.mark.filterwarnings("ignore")  # pydicom's, of what it reads
@given(series=MATCHES, listed=MATCHES)
def test_whatever_a_pacs_answers_what_is_found_fits_into_a_report(series: list[bytes], listed: list[bytes]) -> None:
    found = found_in(series, listed)
    assert found.count is None or 0 <= found.count < 2**31
    TypeAdapter(list[Uid]).validate_python(list(found.images or ()))
    assert all(
        sop_class == "" or TypeAdapter(Uid).validate_python(sop_class) for sop_class in (found.images or {}).values()
    )
    if found.images is not None and found.count is not None:
        assert found.count == len(found.images)


@pytest.mark.slow
@pytest.mark.usefixtures("any_bytes")
@pytest.mark.filterwarnings("ignore")
async def test_whatever_a_pacs_answers_an_answer_fits_into_a_report() -> None:
    said: list[list[bytes]] = []

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        identifiers = said[ds.QueryRetrieveLevel == "IMAGE"]
        yield from ((0xFF00, as_bytes(encoded)) for encoded in identifiers)

    with foreign_pacs(find) as port:
        async with asking(port) as (pacs, _):
            loop = asyncio.get_running_loop()

            @settings(max_examples=25, deadline=None)
            @given(series=MATCHES, listed=MATCHES)
            def each(series: list[bytes], listed: list[bytes]) -> None:
                said[:] = [series, listed]
                answer = asyncio.run_coroutine_threadsafe(pacs.ask(about(UIDS[:1])), loop).result()
                SeriesReport(
                    SeriesInstanceUID=SERIES,
                    StudyInstanceUID=STUDY,
                    NumInstances=answer.known,
                    ExpectedInstances=answer.count,
                    MissingSOPInstanceUIDs=list(answer.missing),
                    Basis=answer.problem,
                )

            await asyncio.to_thread(each)


def anything(tag: int, value: Any) -> DataElement:
    """An element with a value that its VR cannot have."""
    return DataElement(tag, "US", value, already_converted=True)


@pytest.mark.parametrize("status", ["x", [0xFF00, 0], -1, 2**16, None, 1.5])
def test_a_status_that_is_none_is_said(status: Any) -> None:
    answered = Dataset()
    answered[0x00000900] = anything(0x00000900, status)
    with pytest.raises(PacsUnavailable, match="an invalid status"):
        status_of(answered)


def completed(*numbers: Any, last: int = 0x0000) -> Iterator[tuple[Dataset, None]]:
    """Answers to a retrieve with these numbers of completed sub-operations."""
    for n, number in enumerate(numbers, 1):
        status = Dataset()
        status.Status = last if n == len(numbers) else 0xFF00
        status[0x00001021] = anything(0x00001021, number)
        yield status, None


@pytest.mark.parametrize(
    ("numbers", "so_many"), [((1, 2), 2), (("x", 1, "x"), 1), ((None,), 0), ((9999,), 3), ((-4,), 0), (([1, 2],), 0)]
)
def test_a_retrieve_counts_what_can_be_so_many(numbers: tuple[Any, ...], so_many: int) -> None:
    assert retrieved(completed(*numbers), 3, math.inf) == so_many


def test_a_retrieve_that_failed_in_part_gives_the_rest() -> None:
    assert retrieved(completed(1, 2, last=0xB000), 3, math.inf) == 2


def test_a_retrieve_that_goes_on_and_on_is_given_up() -> None:
    with pytest.raises(PacsUnavailable, match="did not end in time"):
        retrieved(completed(*range(10**6)), 3, 0.0)


# --- one PACS, many questions -----------------------------------------------------------------------------------


async def test_questions_to_one_pacs_are_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[float] = []
    monkeypatch.setattr("gateway.pacs.INTERVAL_S", 0.1)

    def find(line: Line, *, key: SeriesKey, study: bool) -> Found:
        began.append(time.monotonic())
        return Found(3)

    monkeypatch.setattr("gateway.pacs.find", find)
    async with asking(1) as (pacs, _):
        before = time.monotonic()
        await asyncio.gather(*(pacs.ask(about()) for _ in range(4)))
    assert all(at - before >= n * 0.1 - 0.01 for n, at in enumerate(began))


async def test_an_error_of_time_in_a_question_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(line: Line, *, key: SeriesKey, study: bool) -> Found:
        raise TimeoutError

    monkeypatch.setattr("gateway.pacs.find", fails)
    async with asking(1) as (pacs, _):
        assert [(await pacs.ask(about())).problem for _ in range(2)] == ["TimeoutError"] * 2
