"""Ask a PACS by C-FIND what it has of a series and its study; fetch images by C-GET or C-MOVE (PS3.4 Annex C).

Everything here blocks and runs in threads. The answers of a foreign PACS are checked here.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from pydantic import TypeAdapter, ValidationError
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from dicom.header import ALWAYS, Wanted, read_instance, with_class_of_command
from dicom.scu import CLASSES_AT_ONCE, Line, PacsUnavailable, matches, matches_on, offers, retrieved, status_of
from dicom.statuses import DATA_SET_MISMATCH, SUCCESS
from models import Count, CountsOfStudy, Instance, SeriesKey, Uid

FETCHED_AT_ONCE = 50  # SOP Instance UIDs in one retrieve request; the list has to fit into 64 KiB
PATIENCE = 4  # a question is given up after this many times pacs_timeout_s
STUDY_TIMEOUT_S = 2.0  # longest wait for an answer about a study, if one about a series waits behind it
RECENT = timedelta(days=30)  # how old a study may be that a check asks about
MAX_PROBLEM = 200  # characters of a problem
A_UID: TypeAdapter[str] = TypeAdapter(Uid)
A_COUNT: TypeAdapter[int] = TypeAdapter(Count)


@dataclass(frozen=True, slots=True)
class StudyAnswer:
    """The counts of a study, or why the PACS gave none."""

    counts: CountsOfStudy | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a PACS has of a series: how many images, and which ones if they were listed."""

    count: int | None
    """The number of images; None if it is unknown, because the list is incomplete."""
    images: Mapping[str, str] | None = None
    """SOP Instance UIDs with their SOP Class UIDs, '' if the PACS does not say it. None if they were not listed."""
    problem: str | None = None
    matches: int = 0
    """The length of its list, including entries of other series and unusable ones."""
    study: StudyAnswer | None = None
    """The answer about its study; None if that was not asked for."""

    def is_all(self, known: Collection[str]) -> bool:
        """Tell if the PACS has exactly the known images: by UIDs if it listed them, by number otherwise.

        An empty series never matches.
        """
        if not self.count:
            return False
        return self.count == len(known) if self.images is None else set(self.images) == set(known)

    def with_images(self, listed: "Found") -> "Found":
        """Combine this count with a list of the same series.

        A list that is shorter than the count is incomplete, which is a problem. A longer one was made later.
        """
        count, images = self.count or 0, listed.images or {}
        short = f"it has {count} and lists {len(images)}" if len(images) < count and listed.problem is None else None
        return Found(max(count, len(images)), images, joined(listed.problem, short), listed.matches)


def probe(line: Line) -> str | None:
    """Try a C-ECHO, and a C-FIND for a series that does not exist; return why C-FIND fails, or None if it works.

    Raises PacsUnavailable if the PACS cannot be reached.
    """
    nothing = SeriesKey("1.2.826.0.1.3680043.8.498.0", "1.2.826.0.1.3680043.8.498.0.1", None)
    with line.associated(Verification, StudyRootQueryRetrieveInformationModelFind) as assoc:
        if status_of(assoc.send_c_echo()) != SUCCESS:
            raise PacsUnavailable("refused C-ECHO")
        if not offers(assoc, StudyRootQueryRetrieveInformationModelFind):
            return "does not offer Study Root C-FIND"
    try:
        find_images(line, key=nothing)
    except PacsUnavailable as error:
        return str(error)
    return None


def probe_study(line: Line, today: date) -> StudyAnswer | None:
    """Ask for the counts of whichever study of the last RECENT the PACS names first; None if it names none.

    The rest of its list is not read. Raises PacsUnavailable.
    """
    identifier = _study_identifier("")
    identifier.StudyDate = f"{today - RECENT:%Y%m%d}-"  # PS3.4 §C.2.2.2.5: from that day on
    with closing(matches(line, identifier)) as found:
        return next(map(_counts_of_study, found), None)


def find(line: Line, *, key: SeriesKey, study: bool = False) -> Found:
    """Ask for the count at SERIES level. If it is missing, unreadable or zero, ask for the list at IMAGE level.

    If `study` is true, and the PACS knows the series, also ask for the counts of its study, behind the first question
    on the same association. Whatever comes of that, the answer about the series stands.
    """
    unanswered = counted = Found(None)
    began_at, of_study = time.monotonic(), None
    try:
        with line.associated(StudyRootQueryRetrieveInformationModelFind) as assoc:
            counted = _count_series(assoc, key, began_at + line.timeout_s, f"pacs_timeout_s={line.timeout_s:g}")
            if study and counted.matches and time.monotonic() < began_at + line.timeout_s:
                of_study = _count_study(assoc, key.study_instance_uid, min(STUDY_TIMEOUT_S, line.timeout_s))
    except Exception as error:  # a foreign peer can send anything
        if counted is unanswered:
            raise
        of_study = of_study or StudyAnswer(problem=_reason(error))
    counted = replace(counted, matches=0, study=of_study)
    if counted.count is not None:
        return counted
    found = find_images(line, key=key)
    return replace(found, problem=joined(counted.problem, found.problem), study=of_study)


def find_study(line: Line, *, study_instance_uid: str) -> CountsOfStudy:
    """Ask for the counts of a study. Raises PacsUnavailable if the PACS gives none."""
    with line.associated(StudyRootQueryRetrieveInformationModelFind) as assoc:
        answer = _count_study(assoc, study_instance_uid, line.timeout_s)
    if answer.counts is None:
        raise PacsUnavailable(str(answer.problem))
    return answer.counts


def _count_series(assoc: Association, key: SeriesKey, deadline: float, bound: str) -> Found:
    """Ask for the count at SERIES level; it is None if it is missing, unreadable or zero."""
    identifier = _identifier("SERIES", key)
    identifier.NumberOfSeriesRelatedInstances = None
    counts: set[int | None] = set()
    dropped = length = 0
    with matches_on(assoc, identifier, deadline, bound) as found:
        for ds in found:
            length += 1
            series = _uid(ds, "SeriesInstanceUID")
            if series == key.series_instance_uid and _text(ds, "NumberOfSeriesRelatedInstances") != "":
                counts.add(_count(ds, "NumberOfSeriesRelatedInstances"))
            dropped += series is None
    unreadable = None in counts
    counts.discard(None)
    count = counts.pop() if len(counts) == 1 else None
    return Found(count or None, problem=_dropped("SERIES", dropped + unreadable, length), matches=length)


def _count_study(assoc: Association, study_instance_uid: str, timeout_s: float) -> StudyAnswer:
    """Ask for the counts at STUDY level (PS3.4 §C.6.2.1.2). Raises PacsUnavailable.

    They are taken from a single match that has this Study Instance UID, at least one series, and no fewer images than
    series.
    """
    identifier = _study_identifier(study_instance_uid)
    assoc.dimse_timeout = timeout_s
    said: list[tuple[str | None, StudyAnswer]] = []
    with matches_on(assoc, identifier, time.monotonic() + timeout_s, f"{timeout_s:g} s") as found:
        for ds in found:
            if said:
                raise PacsUnavailable("several matches for one study")
            said.append((_uid(ds, "StudyInstanceUID"), _counts_of_study(ds)))
    if not said:
        return StudyAnswer(problem="does not know the study")
    uid, answer = said[0]
    return answer if uid == study_instance_uid else StudyAnswer(problem="answers about another study")


def _study_identifier(study_instance_uid: str) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.StudyInstanceUID = "STUDY", study_instance_uid
    ds.NumberOfStudyRelatedSeries = ds.NumberOfStudyRelatedInstances = None
    return ds


def _counts_of_study(ds: Dataset | None) -> StudyAnswer:
    series, instances = (_count(ds, f"NumberOfStudyRelated{level}") for level in ("Series", "Instances"))
    if series is None or instances is None or not 0 < series <= instances:
        return StudyAnswer(problem="gives no counts of a study that can be right")
    return StudyAnswer(CountsOfStudy(Series=series, Instances=instances, At=datetime.now(UTC)))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, PacsUnavailable) else type(error).__name__


def find_images(line: Line, *, key: SeriesKey) -> Found:
    """Ask for the list of images. If some of its entries cannot be used, the count is unknown."""
    identifier = _identifier("IMAGE", key)
    identifier.SOPInstanceUID = identifier.SOPClassUID = None
    images: dict[str, str] = {}
    dropped = length = 0
    for ds in matches(line, identifier):
        length += 1
        series, uid = _uid(ds, "SeriesInstanceUID"), _uid(ds, "SOPInstanceUID")
        if series == key.series_instance_uid and uid is not None:
            images[uid] = _uid(ds, "SOPClassUID") or images.get(uid, "")
        else:  # some PACS answer with other series as well
            dropped += series in (None, key.series_instance_uid)
    count = None if dropped else len(images)
    return Found(count, images, _dropped("IMAGE", dropped, length), length)


def _identifier(level: str, key: SeriesKey) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    ds.StudyInstanceUID, ds.SeriesInstanceUID = key.study_instance_uid, key.series_instance_uid
    return ds


def _dropped(level: str, dropped: int, length: int) -> str | None:
    return f"{dropped} of {length} matches at {level} level cannot be used" if dropped else None


def _text(ds: Dataset | None, keyword: str) -> str | None:
    """Return an element's value as text, whatever its VR; '' if it is empty, None if it is not ASCII text.

    The raw value is read, since pydicom's conversion may raise many kinds of errors.
    """
    try:
        value = ds.get_item(keyword).value if ds is not None and keyword in ds else None
        if isinstance(value, MultiValue | list):
            value = "\\".join(map(str, value))
        text = value.decode("ascii") if isinstance(value, bytes) else str("" if value is None else value)
    except Exception:  # a foreign peer can send anything
        return None
    return text.strip(" \0")


def _uid(ds: Dataset | None, keyword: str) -> str | None:
    """Return a UID; None if it is missing or not a UID."""
    text = _text(ds, keyword)
    if text is not None and "\0" not in text:
        with suppress(ValidationError):
            return A_UID.validate_python(text)
    return None


def _count(ds: Dataset | None, keyword: str) -> int | None:
    """Return a number; None if it is not a single number, or out of the range that reports allow."""
    text = _text(ds, keyword) or ""
    if re.fullmatch(r"\+?[0-9]{1,12}", text):
        with suppress(ValidationError):
            return A_COUNT.validate_python(int(text))
    return None


def move(line: Line, *, key: SeriesKey, uids: Sequence[str], to: str) -> int:
    """Have the PACS send images to us by C-MOVE (PS3.4 §C.4.2); return how many it says it sent.

    The images come by C-STORE, as any others do. Raises PacsUnavailable.
    """
    model, deadline = StudyRootQueryRetrieveInformationModelMove, _deadline(line, len(uids))
    with line.associated(model) as assoc:
        return sum(
            retrieved(assoc.send_c_move(_retrieve(key, some), to, model), len(some), deadline)
            for some in _batches(uids)
        )


def get(
    line: Line, *, key: SeriesKey, missing: Mapping[str, str], store: Callable[[Instance], int], wanted: Wanted = ALWAYS
) -> int:
    """Fetch images by C-GET (PS3.4 §C.4.3); return how many of the missing ones came. Raises PacsUnavailable.

    The images come on our association, and `store` treats them as those that were sent. `missing` maps SOP Instance
    UIDs to their SOP Class UID, or to several possible ones, separated by backslashes.
    """
    model, deadline = StudyRootQueryRetrieveInformationModelGet, _deadline(line, len(missing))
    arrived: set[str] = set()

    def handle_store(event: evt.Event) -> int:
        if time.monotonic() > deadline:  # a PACS that sends without end must not hold this thread
            event.assoc.abort()
        instance = read_instance(
            event.request.DataSet.getvalue(),  # type: ignore[union-attr]
            wanted=wanted,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae_title=line.peer.ae_title,
            peer_address=line.peer.host,
            received_at=datetime.now(UTC),
        )
        command = event.request
        if instance.sop_instance_uid != str(command.AffectedSOPInstanceUID).strip("\0 "):  # type: ignore[union-attr]
            return DATA_SET_MISMATCH
        status = store(with_class_of_command(instance, str(command.AffectedSOPClassUID)))
        if status == SUCCESS:
            arrived.add(instance.sop_instance_uid)
        return status

    for classes in _class_groups(missing.values()):
        uids = [uid for uid, of in missing.items() if uid not in arrived and classes & set(of.split("\\"))]
        with line.associated(model, scp_of=classes, evt_handlers=[(evt.EVT_C_STORE, handle_store)]) as assoc:
            for some in _batches(uids):
                retrieved(assoc.send_c_get(_retrieve(key, some), model), len(some), deadline)
    return len(arrived & missing.keys())


def _class_groups(classes: Collection[str]) -> Iterator[set[str]]:
    """Yield groups of SOP Classes that fit on one association, the most frequent first.

    Raises PacsUnavailable if no SOP Class is known.
    """
    found = Counter(uid for of in classes for uid in of.split("\\") if uid)
    if not found:
        raise PacsUnavailable("it does not say the SOP Classes of the missing images")
    ordered = [uid for uid, _ in found.most_common()]
    for first in range(0, len(ordered), CLASSES_AT_ONCE):
        yield set(ordered[first : first + CLASSES_AT_ONCE])


def _deadline(line: Line, images: int) -> float:
    return time.monotonic() + line.timeout_s * patience(images)


def _batches(uids: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(uids), FETCHED_AT_ONCE):
        yield list(uids[first : first + FETCHED_AT_ONCE])


def _retrieve(key: SeriesKey, uids: list[str]) -> Dataset:
    identifier = _identifier("IMAGE", key)
    identifier.SOPInstanceUID = uids
    return identifier


def patience(images: int) -> float:
    """Return after how many times pacs_timeout_s a retrieve of that many images is given up."""
    return PATIENCE + images / FETCHED_AT_ONCE * PATIENCE


def joined(*problems: str | None) -> str | None:
    """Join problems into one text, each once, and cut it at MAX_PROBLEM. Return None if there are none."""
    return "; ".join(dict.fromkeys(filter(None, problems)))[:MAX_PROBLEM] or None
