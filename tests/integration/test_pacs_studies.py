"""The counts of a study at a PACS: asked beside a series, at no cost to it; stock pynetdicom as PACS."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from structlog.testing import capture_logs

from client import count_study
from dicom.query_retrieve import RECENT, find, probe_study
from dicom.scu import Line, PacsUnavailable
from gateway.questions import Answer
from gateway.study_counts import PAUSE_S, REFUSALS, StudyManners
from models import CountsOfStudy, SeriesReport
from tests.rig.factories import SERIES, STUDY
from tests.rig.foreign_pacs import (
    KEY,
    NOTHING,
    UIDS,
    Find,
    about,
    accepting,
    asking,
    counts,
    foreign_pacs,
    match,
    saying,
    study,
)
from tests.rig.identifiers import IDENTIFIERS, Said, raw


def of(answer: Answer) -> tuple[int, int] | None:
    return (answer.study.Series, answer.study.Instances) if answer.study else None


async def ask(find: Find, **settings: Any) -> Answer:
    with foreign_pacs(find) as port:
        async with asking(port, **settings) as (pacs, _):
            return await pacs.ask(about())


async def test_a_study_is_counted_on_the_association_of_its_series_and_the_answer_says_when() -> None:
    associations: list[Any] = []
    asked: list[Dataset] = []

    def handle(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(event.identifier)
        yield from saying(study(event.identifier))(event.identifier)

    ae = AE("PACS1")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    handlers = [(evt.EVT_C_FIND, handle), (evt.EVT_ESTABLISHED, associations.append)]
    before = datetime.now(UTC)
    with accepting(ae, handlers) as port:
        async with asking(port) as (pacs, _):
            answer = await pacs.ask(about())
    assert (answer.count, answer.confirmed, answer.problem) == (3, True, None)
    assert of(answer) == (2, 7)
    assert answer.study
    assert before <= answer.study.At <= datetime.now(UTC)
    assert len(associations) == 1
    _, identifier = asked
    assert [(element.keyword, element.value) for element in identifier] == [
        ("QueryRetrieveLevel", "STUDY"),
        ("StudyInstanceUID", STUDY),
        ("NumberOfStudyRelatedSeries", None),
        ("NumberOfStudyRelatedInstances", None),
    ]


NONSENSE = {
    "refused": [(0xA900, None)],
    "unable": [(0xC000, None)],
    "no match": [],
    "no counts": [study(NOTHING, None, None)],
    "no images": [study(NOTHING, 2, None)],
    "no series": [study(NOTHING, None, 7)],
    "empty": [study(NOTHING, "", "")],
    "zero": [study(NOTHING, 0, 0)],
    "more series than images": [study(NOTHING, 8, 7)],
    "negative": [study(NOTHING, -2, 7)],
    "too many": [study(NOTHING, 2, 2**31)],
    "several values": [study(NOTHING, [2, 3], 7)],
    "another study": [study(NOTHING, uid="1.2.3")],
    "twice": [study(NOTHING), study(NOTHING)],
    "with another study": [study(NOTHING, uid="1.2.3"), study(NOTHING)],
    "then a failure": [study(NOTHING), (0xC000, None)],
    "a series": [match(Dataset.from_json({"00080052": {"vr": "CS", "Value": ["STUDY"]}}), series=SERIES)],
}


@pytest.mark.parametrize("answers", NONSENSE.values(), ids=NONSENSE.keys())
async def test_no_answer_about_a_study_is_a_problem_of_its_series(answers: list[tuple[int, Dataset | None]]) -> None:
    answer = await ask(saying(*answers))
    assert (answer.count, answer.confirmed, answer.problem) == (3, True, None)
    assert answer.study is None


async def test_a_pacs_that_breaks_off_at_a_study_is_asked_about_series_as_before() -> None:
    def handle(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.QueryRetrieveLevel == "STUDY":
            event.assoc.abort()
        yield from counts(3)(event.identifier)

    ae = AE("PACS1")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    with accepting(ae, [(evt.EVT_C_FIND, handle)]) as port:
        async with asking(port) as (pacs, _):
            answers = [await pacs.ask(about()) for _ in range(2)]
    assert [(answer.confirmed, answer.problem, answer.study) for answer in answers] == [(True, None, None)] * 2


async def test_a_pacs_that_hangs_at_a_study_does_not_hold_up_its_series_for_long_and_is_not_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dicom.query_retrieve.STUDY_TIMEOUT_S", 0.2)
    stop = threading.Event()

    def hangs(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel == "STUDY":
            stop.wait(60)
        yield from counts(3)(ds)

    with foreign_pacs(hangs) as port:
        async with asking(port, timeout_s=30) as (pacs, _):
            began = time.monotonic()
            answers = [await pacs.ask(about()) for _ in range(REFUSALS + 1)]
            waited_s = time.monotonic() - began
            stop.set()
    assert [(answer.confirmed, answer.problem, answer.study) for answer in answers] == [(True, None, None)] * 4
    assert waited_s < 30  # less than one answer may take


async def test_a_pacs_that_gives_no_counts_is_asked_in_vain_a_few_times_only() -> None:
    levels: list[str] = []
    with foreign_pacs(counts(3), called=levels) as port, capture_logs() as logs:
        async with asking(port) as (pacs, _):
            for _ in range(REFUSALS + 3):
                assert (await pacs.ask(about())).confirmed
            with pytest.raises(PacsUnavailable, match="gave no counts of studies before"):
                await pacs.count_study("PACS1", STUDY)
    assert levels.count("STUDY") == REFUSALS
    assert levels.count("SERIES") == REFUSALS + 3
    (line,) = [entry for entry in logs if entry["event"] == "pacs.uncounted"]
    assert (line["pacs"], line["reason"]) == ("PACS1", "does not know the study")


async def test_a_pacs_that_does_not_know_the_series_is_not_asked_about_its_study() -> None:
    levels: list[str] = []

    def nothing(_: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield from ()

    with foreign_pacs(nothing, called=levels) as port:
        async with asking(port) as (pacs, _):
            answer = await pacs.ask(about())
    assert (answer.count, answer.study) == (0, None)
    assert levels == ["SERIES", "IMAGE"]


async def test_a_list_of_all_studies_is_not_read_to_its_end() -> None:
    sent: list[int] = []

    def everything(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if ds.QueryRetrieveLevel != "STUDY":
            yield from counts(3)(ds)
            return
        for n in range(20_000):
            sent.append(n)
            yield study(ds, uid=f"1.2.{n}")

    assert (await ask(everything)).confirmed
    assert len(sent) < 20_000


def test_a_pacs_is_tried_again_after_a_pause_and_one_answer_ends_it() -> None:
    manners = StudyManners()
    for n in range(REFUSALS):
        assert manners.may_ask("PACS1", float(n))
        assert manners.note("PACS1", float(n), counted=False) == (n == REFUSALS - 1)
    last = REFUSALS - 1.0
    assert not manners.may_ask("PACS1", last + PAUSE_S - 1)
    assert manners.may_ask("PACS2", last)
    assert manners.may_ask("PACS1", last + PAUSE_S)
    assert manners.note("PACS1", last + PAUSE_S, counted=False)
    assert not manners.may_ask("PACS1", last + PAUSE_S + 1)
    assert not manners.note("PACS1", last + 2 * PAUSE_S, counted=True)
    assert manners.may_ask("PACS1", last + 2 * PAUSE_S)


# --- by order of the server -----------------------------------------------------------------------------------


async def order(find: Find, title: str = "PACS1", status: int = 204) -> tuple[str | None, list[dict[str, Any]]]:
    """Carry out the order to count STUDY; return its problem, and what was posted."""
    posted: list[dict[str, Any]] = []

    def take(request: httpx.Request) -> httpx.Response:
        posted.append(cast(dict[str, Any], httpx.Response(200, content=request.content).json()))
        return httpx.Response(status)

    with foreign_pacs(find) as port:
        async with (
            asking(port) as (pacs, _),
            httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(take)) as http,
        ):
            return await count_study(pacs, http, "gateway-1", title, STUDY), posted


async def test_an_order_to_count_asks_the_pacs_and_posts_its_answer() -> None:
    problem, (posted,) = await order(saying(study(NOTHING)), "PACS1 ")
    assert problem is None
    assert (posted["Series"], posted["Instances"], posted["GatewayID"]) == (2, 7, "gateway-1")


@pytest.mark.parametrize("answers", NONSENSE.values(), ids=NONSENSE.keys())
async def test_an_order_to_count_that_gets_no_counts_says_why(answers: list[tuple[int, Dataset | None]]) -> None:
    problem, posted = await order(saying(*answers))
    assert str(problem).startswith("PACS1: ")
    assert posted == []


async def test_an_order_about_a_pacs_that_this_gateway_does_not_have_says_so() -> None:
    assert await order(counts(3), "OTHER") == ("OTHER: GATEWAY_PACS of this gateway does not name it", [])


# --- whatever it answers --------------------------------------------------------------------------------------


class Both:
    """Instead of a line and its association: identifiers by level."""

    timeout_s = 60.0
    dimse_timeout = 60.0

    def __init__(self, of_study: Iterable[bytes]) -> None:
        self._of_study = of_study
        self.asked: list[Dataset] = []

    @contextmanager
    def associated(self, *_: str) -> Iterator["Both"]:
        yield self

    def send_c_find(self, identifier: Dataset, *_: Any) -> Iterator[tuple[Dataset, Dataset | None]]:
        self.asked.append(identifier)
        of_series = [raw((0x0020000E, SERIES.encode()), (0x00201209, b"3 "))[1].sent]
        return Said(self._of_study if identifier.QueryRetrieveLevel == "STUDY" else of_series).send_c_find()


def counted(number: bytes) -> bytes:
    """A match at STUDY level with this number of images."""
    return raw((0x0020000D, STUDY.encode()), (0x00201206, b"2 "), (0x00201208, number))[1].sent


def test_a_probe_asks_for_any_study_of_lately() -> None:
    line = Both([counted(b"7")])
    answer = probe_study(cast(Line, line), date(2026, 6, 1))
    (identifier,) = line.asked
    asked = (identifier.QueryRetrieveLevel, identifier.StudyInstanceUID, identifier.StudyDate)
    assert asked == ("STUDY", "", f"{date(2026, 6, 1) - RECENT:%Y%m%d}-")
    assert answer
    assert answer.counts
    assert (answer.counts.Series, answer.counts.Instances) == (2, 7)


@pytest.mark.parametrize("number", [b"3 series", b"\xff\xfe", b"1.0 ", b"9999999999999 "])
def test_counts_that_cannot_be_read_are_none(number: bytes) -> None:
    found = find(cast(Line, Both([counted(number)])), key=KEY, study=True)
    assert found.study
    assert (found.count, found.problem, found.study.counts) == (3, None, None)


@pytest.mark.parametrize("number", [b"7", b"0007", b" 7", b"7 ", b"+7", b"7\0"])
def test_counts_are_read_as_an_integer_string_may_be_written(number: bytes) -> None:
    found = find(cast(Line, Both([counted(number)])), key=KEY, study=True)
    assert found.study
    assert found.study.counts
    assert (found.study.counts.Series, found.study.counts.Instances) == (2, 7)


OF_STUDY = st.lists(
    IDENTIFIERS
    | st.binary(max_size=40)
    | st.tuples(st.binary(max_size=20), st.binary(max_size=20)).map(
        lambda two: raw((0x0020000D, STUDY.encode()), (0x00201206, two[0]), (0x00201208, two[1]))[1].sent
    ),
    max_size=3,
)


@pytest.mark.filterwarnings("ignore")  # pydicom's, of what it reads
@given(of_study=OF_STUDY)
def test_whatever_a_pacs_says_of_a_study_the_series_is_counted_and_counts_fit_into_a_report(
    of_study: list[bytes],
) -> None:
    found = find(cast(Line, Both(of_study)), key=KEY, study=True)
    assert (found.count, found.problem, found.is_all(UIDS)) == (3, None, True)
    assert found.study is not None
    assert (found.study.counts is None) == (found.study.problem is not None)
    report = SeriesReport(
        SeriesInstanceUID=SERIES, StudyInstanceUID=STUDY, NumInstances=3, StudyCounts=found.study.counts
    )
    if report.StudyCounts is not None:
        assert CountsOfStudy.model_validate(report.StudyCounts.model_dump())
        assert 0 < report.StudyCounts.Series <= report.StudyCounts.Instances
