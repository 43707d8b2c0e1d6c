"""What a PACS has of a series, asked by C-FIND and fetched by C-GET or C-MOVE (PS3.4 Annex C).

Blocking: what is here runs in threads. What a foreign PACS says is checked here.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from dicom.header import ALWAYS, Wanted, read_instance, with_class_of_command
from dicom.scu import CLASSES_AT_ONCE, Line, PacsUnavailable, matches, offers, retrieved, status_of
from dicom.statuses import DATA_SET_MISMATCH, SUCCESS
from models import Count, Instance, SeriesKey, Uid

FETCHED_AT_ONCE = 50  # SOP Instance UIDs in one retrieve request: the list has to fit into 64 KiB
PATIENCE = 4  # times pacs_timeout_s until a whole question is given up
MAX_PROBLEM = 200  # characters
A_UID: TypeAdapter[str] = TypeAdapter(Uid)
A_COUNT: TypeAdapter[int] = TypeAdapter(Count)


@dataclass(frozen=True, slots=True)
class Found:
    """What a PACS has of a series: how many images, and which, where it was asked that."""

    count: int | None
    """None where it cannot be told: what was listed is not all."""
    images: Mapping[str, str] | None = None
    """SOP Instance UID to SOP Class UID, '' where the PACS does not say it."""
    problem: str | None = None
    matches: int = 0
    """How long its list was, with all that is not of this series or cannot be used."""

    def is_all(self, known: Collection[str]) -> bool:
        """Whether that is what is known, by UIDs where there are some; nothing is never all."""
        if not self.count:
            return False
        return self.count == len(known) if self.images is None else set(self.images) == set(known)

    def with_images(self, listed: "Found") -> "Found":
        """With the list of what was counted: one that is shorter lacks something, one that is longer is later."""
        count, images = self.count or 0, listed.images or {}
        short = f"it has {count} and lists {len(images)}" if len(images) < count and listed.problem is None else None
        return Found(max(count, len(images)), images, joined(listed.problem, short), listed.matches)


def probe(line: Line) -> str | None:
    """C-ECHO, then a C-FIND for a series that does not exist: why that is not answered. Raises PacsUnavailable."""
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


def find(line: Line, *, key: SeriesKey) -> Found:
    """The count at SERIES level, or, where the PACS gives none that can be read or zero, the list at IMAGE level."""
    identifier = _identifier("SERIES", key)
    identifier.NumberOfSeriesRelatedInstances = None
    counts: set[int | None] = set()
    dropped = length = 0
    for ds in matches(line, identifier):
        length += 1
        series = _uid(ds, "SeriesInstanceUID")
        if series == key.series_instance_uid and _text(ds, "NumberOfSeriesRelatedInstances") != "":
            counts.add(_count(ds))
        dropped += series is None
    unreadable = None in counts
    counts.discard(None)
    problem = _dropped("SERIES", dropped + unreadable, length)
    if len(counts) == 1 and (count := counts.pop()):
        return Found(count, problem=problem)
    found = find_images(line, key=key)
    return replace(found, problem=joined(problem, found.problem))


def find_images(line: Line, *, key: SeriesKey) -> Found:
    """What is listed at IMAGE level; where some of that cannot be used, the list is not whole and counts nothing."""
    identifier = _identifier("IMAGE", key)
    identifier.SOPInstanceUID = identifier.SOPClassUID = None
    images: dict[str, str] = {}
    dropped = length = 0
    for ds in matches(line, identifier):
        length += 1
        series, uid = _uid(ds, "SeriesInstanceUID"), _uid(ds, "SOPInstanceUID")
        if series == key.series_instance_uid and uid is not None:
            images[uid] = _uid(ds, "SOPClassUID") or images.get(uid, "")
        else:  # PACS were seen to answer with other series
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
    """An element's value as text, whatever its VR; '' where it has none, None where it is no ASCII text.

    As it was sent, without pydicom's conversion, which raises what each VR may raise.
    """
    try:
        value = ds.get_item(keyword).value if ds is not None and keyword in ds else None
        if isinstance(value, MultiValue | list):
            value = "\\".join(map(str, value))
        text = value.decode("ascii") if isinstance(value, bytes) else str("" if value is None else value)
    except Exception:  # the edge to a foreign peer, which can say anything
        return None
    return text.strip(" \0")


def _uid(ds: Dataset | None, keyword: str) -> str | None:
    """None where there is none, or what stands there is no UID."""
    text = _text(ds, keyword)
    if text is not None and "\0" not in text:
        with suppress(ValidationError):
            return A_UID.validate_python(text)
    return None


def _count(ds: Dataset | None) -> int | None:
    """An IS with one value; None where it is no number, or one that no report takes."""
    text = _text(ds, "NumberOfSeriesRelatedInstances") or ""
    if re.fullmatch(r"\+?[0-9]{1,12}", text):
        with suppress(ValidationError):
            return A_COUNT.validate_python(int(text))
    return None


def move(line: Line, *, key: SeriesKey, uids: Sequence[str], to: str) -> int:
    """C-MOVE to ourselves (PS3.4 §C.4.2): the images come by C-STORE as others do. Returns how many."""
    model, deadline = StudyRootQueryRetrieveInformationModelMove, _deadline(line, len(uids))
    with line.associated(model) as assoc:
        return sum(
            retrieved(assoc.send_c_move(_retrieve(key, some), to, model), len(some), deadline)
            for some in _batches(uids)
        )


def get(
    line: Line, *, key: SeriesKey, missing: Mapping[str, str], store: Callable[[Instance], int], wanted: Wanted = ALWAYS
) -> int:
    """C-GET (PS3.4 §C.4.3): the images come on this association, and go the way of those that were sent.

    `missing`: SOP Instance UID to SOP Class UID; to several, as DICOM joins values, where it is not known which.
    """
    model, deadline = StudyRootQueryRetrieveInformationModelGet, _deadline(line, len(missing))
    arrived: set[str] = set()

    def handle_store(event: evt.Event) -> int:
        if time.monotonic() > deadline:  # one that sends without end holds a thread no longer
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
    """Those that can be proposed on one association, the most frequent first. Raises PacsUnavailable without any."""
    found = Counter(uid for of in classes for uid in of.split("\\") if uid)
    if not found:
        raise PacsUnavailable("it does not say the SOP Classes of what is missing")
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
    """Times pacs_timeout_s until a retrieve of so many images is given up."""
    return PATIENCE + images / FETCHED_AT_ONCE * PATIENCE


def joined(*problems: str | None) -> str | None:
    """Each once, and no more than fits where it is noted."""
    return "; ".join(dict.fromkeys(filter(None, problems)))[:MAX_PROBLEM] or None
