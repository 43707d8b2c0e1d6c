"""The nouns that cross a boundary: Instance, SeriesReport, SeriesRecord. No I/O, no clock."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

SeriesVerdict = Literal["verified", "declared", "expected", "idle", "capped", "drained"]
"""Why a series was reported: see docs/verdicts.md."""
FINAL_VERDICTS = ("verified", "declared", "expected", "idle")
"""The verdicts that say that the series is over."""

T = TypeVar("T")

MAX_TIMELINE = 200  # entries of one report
MAX_MISSING = 1000  # UIDs of one report
MAX_DOUBTS = 32  # texts about what of one series breaks the standard
MAX_DOUBT = 128  # characters of one of these
MAX_ARRIVING = 500  # open series that one heartbeat names: the ones that images came to last
MAX_OPEN_STUDIES = 1000  # studies that one heartbeat names
MAX_HEARD = 50  # sources that one heartbeat names: the ones that were heard last
MAX_DEAD = 20  # dead letters that one heartbeat names: the latest
MAX_ORDERS = 20  # orders in one answer to a heartbeat, and in one heartbeat that says what became of them
MAX_BECAUSE = 256  # characters of the reason that a person gives
SLOT_S = 5  # seconds of each count of GatewayState.Received
MAX_SLOTS = 120  # counts of one heartbeat: ten minutes

# What a record holds that describes a series, be it sent or stored.
MOST = 100  # entries of a mapping
MAX_VALUE = 10_240  # characters of one value: an LT (PS3.5 table 6.2-1)
MAX_VALUES = 1025  # of one attribute: a gateway sends 1024 bytes, which may all be backslashes
MAX_ATTRIBUTE = 2**14  # characters of all its values, each counted with one more
MAX_DESCRIPTION = 2**16  # characters of all attributes of a record, counted so, and of all bytes that are undecoded
MAX_UID = 128  # characters: twice what PS3.5 §9.1 allows, as peers send and others take
A_UID = rf"[ -\[\]-~]{{1,{MAX_UID}}}"
"""What is taken as a UID, without padding: ASCII that can be printed, one value (a backslash separates several)."""
STANDARD_UID = re.compile(r"(?=[0-9.]{1,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
SURROGATES = re.compile("[\ud800-\udfff]")


class SeriesKey(NamedTuple):
    """What one series is collected under.

    PatientID is part of it: the same Series Instance UID under two patients must reach the server as two
    reports, or the contradiction would vanish inside one of them.
    """

    study_instance_uid: str
    series_instance_uid: str
    patient_id: str | None


@dataclass(slots=True, eq=False)
class Association:
    """One association: its acceptor changes it, others read. Times are the event loop's, in seconds."""

    number: int
    calling_ae_title: str
    peer_address: str
    opened_at: float
    began_at: float | None = None
    """Time at which the last instance began to come."""
    receiving_at: float | None = None
    """Time at which bytes of an instance that has not ended last came; None between instances."""
    released_at: float | None = None
    """Time at which it ended, by A-RELEASE or otherwise."""
    aborted: bool = False
    """It ended without A-RELEASE: its sender may begin again."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One received SOP Instance: its identity, where it came from, and its header's attributes.

    `attributes` maps DICOM keywords to their values in text form (empty tuple: present without value).
    `undecoded` maps the keywords of text that its character set cannot decode to the bytes as sent.
    `doubtful` says what of it breaks the standard, so that another reader may understand it otherwise.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    peer_address: str
    received_at: datetime
    attributes: Mapping[str, tuple[str, ...]]
    undecoded: Mapping[str, bytes] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()
    called_ae_title: str = ""
    """The AE title that its sender called us by; empty if we fetched it, and of earlier versions."""
    length: int = field(default=0, compare=False)
    """Bytes of the encoded data set."""
    association: Association | None = field(default=None, compare=False, repr=False)
    """The association that carried it; None if that is not known any more."""
    key: SeriesKey = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        key = SeriesKey(self.study_instance_uid, self.series_instance_uid, self.text("PatientID"))
        object.__setattr__(self, "key", key)  # made once, since many ask for it

    def text(self, keyword: str) -> str | None:
        """Return the attribute as one string, values joined by a backslash as on the wire; None if it has no value."""
        return "\\".join(self.attributes.get(keyword, ())) or None


# --- UIDs -------------------------------------------------------------------------------------------------------


def is_uid(text: str) -> bool:
    """Return whether a text, its padding removed, is taken as a UID."""
    return re.fullmatch(A_UID, text) is not None


@lru_cache(maxsize=2**12)  # those of study, series and class come with each image
def is_standard_uid(text: str) -> bool:
    """Return whether a text is a UID of PS3.5 §9.1."""
    return STANDARD_UID.fullmatch(text) is not None


# --- text that others can bear ----------------------------------------------------------------------------------


def valid_unicode(value: Any) -> Any:
    """Return a JSON value with a replacement character for each lone surrogate: UTF-8 has none."""
    match value:
        case str():
            return value if value.isascii() else SURROGATES.sub("\ufffd", value)
        case dict():
            return {valid_unicode(name): valid_unicode(each) for name, each in value.items()}
        case list():
            return [valid_unicode(each) for each in value]
    return value


def fitting(attributes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return as much of attributes as a record holds, in valid Unicode: values are cut, of too many the first stay."""
    return _first({keyword: list(_cut(values)) for keyword, values in islice(attributes.items(), MOST)}, _size)


def fitting_bytes(undecoded: Mapping[str, str]) -> dict[str, str]:
    """Return as much of undecoded text (in Base64, which is not cut) as a record holds."""
    short = {keyword: text for keyword, text in undecoded.items() if len(text) <= MAX_ATTRIBUTE}
    return _first(dict(islice(short.items(), MOST)), len)


def _cut(values: Sequence[str]) -> Iterator[str]:
    left = MAX_ATTRIBUTE
    for value in values[:MAX_VALUES]:
        left -= len(value[:MAX_VALUE]) + 1
        if left < 0:
            return
        yield valid_unicode(value[:MAX_VALUE])


def _first(entries: Mapping[str, T], size: Callable[[T], int]) -> dict[str, T]:
    kept, left = {}, MAX_DESCRIPTION
    for keyword, value in entries.items():
        if size(value) <= left:
            kept[keyword] = value
            left -= size(value)
    return kept


def _size(values: Sequence[str]) -> int:
    return sum(map(len, values)) + len(values)


def _at_most(most: int, size: Callable[[Any], int]) -> AfterValidator:
    def check(value: T) -> T:
        if size(value) > most:
            raise ValueError(f"has more than {most} characters in all")
        return value

    return AfterValidator(check)


# --- reports ----------------------------------------------------------------------------------------------------


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > MOST:
        raise ValueError(f"has more than {MOST} entries")
    return value


def _clean(value: object) -> object:
    """Remove what DICOM pads with: NUL anywhere (PostgreSQL text has none), spaces at the ends; empty is None."""
    return (value.replace("\0", "").strip(" ") or None) if isinstance(value, str) else value


Uid = Annotated[
    str,
    Field(pattern=f"^{A_UID}$", description="A UID as sent, be it one of PS3.5 §9.1 or not. Never a path of a file."),
    BeforeValidator(_clean),
]
Text = Annotated[Annotated[str, Field(max_length=1024)] | None, BeforeValidator(_clean)]
PatientId = Annotated[Annotated[str, Field(max_length=256)] | None, BeforeValidator(_clean)]
Keyword = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$", description="A DICOM keyword (PS3.6).")]
Few = BeforeValidator(_few)  # before each of a million wrong ones gets an error of its own
WithoutNul = AfterValidator(lambda text: text.replace("\0", ""))
Value = Annotated[str, Field(max_length=MAX_VALUE), WithoutNul]
Values = Annotated[list[Value], Field(fail_fast=True), Field(max_length=MAX_VALUES), _at_most(MAX_ATTRIBUTE, _size)]
Doubt = Annotated[str, Field(max_length=MAX_DOUBT), WithoutNul]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$", max_length=MAX_ATTRIBUTE)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Total = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
InstanceValues = Annotated[list[Annotated[str, Field(max_length=MAX_UID), WithoutNul] | None], Field(fail_fast=True)]
InstanceKeyword = Literal["SOPClassUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"]
"""What is known of each instance beside its UID (PS3.18 table 10.6.3-5)."""
INSTANCE_KEYWORDS: tuple[InstanceKeyword, ...] = get_args(InstanceKeyword)


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the year 1 or after the year 9999 in UTC") from None


def _is_no_number(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError("is a number; send ISO 8601 text with a time zone")  # noqa: TRY004 - pydantic's kind of error
    return value


Timestamp = Annotated[AwareDatetime, BeforeValidator(_is_no_number), AfterValidator(_in_utc)]


class TimelineEntry(BaseModel):
    """One thing that happened to a series, as evidence. Never patient data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    At: Timestamp
    Event: Annotated[str, Field(pattern=r"^[a-z]+\.[a-z_]+$", max_length=64, description="As in the logs: noun.verb.")]
    Details: Annotated[
        dict[Keyword, bool | Whole | FiniteFloat | Annotated[str, Field(max_length=256), WithoutNul] | None],
        Few,
        Field(max_length=16),
    ] = {}


class CountsOfStudy(BaseModel):
    """What a PACS has of a study: NumberOfStudyRelatedSeries and NumberOfStudyRelatedInstances (PS3.4 C.3.4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    Series: Count
    Instances: Count
    At: Annotated[Timestamp, Field(description="When it said so, by the gateway's clock.")]


class SeriesReport(BaseModel):
    """What `POST /series` takes. The first five fields are all a minimal client needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    SeriesInstanceUID: Uid
    PatientID: PatientId = None
    PatientName: Text = None
    StudyInstanceUID: Uid
    NumInstances: Annotated[Count, Field(description="Without SOPInstanceUIDs: at least so many are known.")]
    SOPInstanceUIDs: Annotated[
        Annotated[list[Uid], Field(fail_fast=True)] | None,
        Field(description="The server takes the union; order and repetition do not matter."),
    ] = None
    InstanceAttributes: Annotated[
        dict[InstanceKeyword, InstanceValues],
        Few,
        Field(description="Values in text form in the order of SOPInstanceUIDs; a single one holds for all."),
    ] = {}
    Attributes: Annotated[
        dict[Keyword, Values],
        Few,
        _at_most(MAX_DESCRIPTION, lambda attributes: sum(map(_size, attributes.values()))),
        Field(description="Study and series attributes, keyword to values in text form."),
    ] = {}
    Undecoded: Annotated[
        dict[Keyword, Base64],
        Few,
        _at_most(MAX_DESCRIPTION, lambda undecoded: sum(map(len, undecoded.values()))),
        Field(description="Text its character set cannot decode: the bytes as sent."),
    ] = {}
    Doubtful: Annotated[
        list[Doubt],
        Field(fail_fast=True),
        Field(max_length=MAX_DOUBTS, description="What of its images breaks the standard. Never patient data."),
    ] = []
    Revision: Annotated[
        int, Field(strict=True, ge=1, lt=2**31, description="Counts this gateway's reports of the series.")
    ] = 1
    Verdict: SeriesVerdict | None = None
    ExpectedInstances: Annotated[
        Count | None, Field(description="So many there should be, as `ExpectedFrom` says.")
    ] = None
    ExpectedFrom: Annotated[
        Literal["pacs", "tags"] | None, Field(description="Who says so: the PACS, asked twice, or a tag of the images.")
    ] = None
    MissingSOPInstanceUIDs: Annotated[
        list[Uid],
        Field(fail_fast=True),
        Field(max_length=MAX_MISSING, description="Of what the PACS has: what neither side had when asked."),
    ] = []
    StudyCounts: CountsOfStudy | None = None
    Basis: Annotated[
        Annotated[str, Field(max_length=256), WithoutNul] | None,
        Field(description="What the verdict rests on, in words."),
    ] = None
    Source: Annotated[
        Annotated[str, Field(max_length=64), WithoutNul] | None,
        Field(description="Calling AE title, modality and station, as learnt for."),
    ] = None
    CalledAETitle: Annotated[
        Annotated[str, Field(max_length=64), WithoutNul] | None,
        Field(description="By what name the sender called the gateway."),
    ] = None
    IdlePolicy: Annotated[
        Annotated[str, Field(max_length=32), WithoutNul] | None, Field(description="The idle policy that decided.")
    ] = None
    Timeline: Annotated[
        list[TimelineEntry],
        Field(fail_fast=True),
        Field(max_length=MAX_TIMELINE, description="What happened to the series, as evidence."),
    ] = []
    GatewayID: Annotated[
        Annotated[str, Field(max_length=64), WithoutNul] | None, Field(description="The gateway that reports.")
    ] = None
    FirstReceivedAt: Timestamp | None = None
    LastReceivedAt: Timestamp | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: object) -> object:
        return _few(value)

    @model_validator(mode="after")
    def _attributes_fit_their_instances(self) -> Self:
        for keyword, values in self.InstanceAttributes.items():
            if len(values) not in (1, len(self.SOPInstanceUIDs or ())):
                raise ValueError(
                    f"InstanceAttributes.{keyword} has {len(values)} values: send one for each of "
                    "SOPInstanceUIDs, or one for all"
                )
        return self

    @property
    def key(self) -> SeriesKey:
        return SeriesKey(self.StudyInstanceUID, self.SeriesInstanceUID, self.PatientID)


CalledTitle = Annotated[str | None, Field(description="By what name the series' sender called first.")]
Subjects = Literal["series", "study", "any"]
ChangeKind = Literal["created", "revised", "verified", "declared", "contradicted", "conflict"]
"""What a change is. created: revision 1. revised: a later one. verified: it is now, with these images. declared: a
person has said that it is complete, or that it is not (then Verdict is null). contradicted: images came after a
verdict had said that the series was over. conflict: a report was kept aside; no revision."""


class Change(BaseModel):
    """One revision of a record, or a report kept aside, in the order in which they came about. Names no patient.

    A study is told of when its verdict changes. Its revision, verdict and counts then stand in place of a series'.

    Those of a server before 0.3 name no Kinds, and leave Modality, Source and ExpectedInstances null.
    """

    Number: Annotated[int, Field(description="Only ever grows; pass the last one as `since` to go on.")]
    Subject: Annotated[Literal["series", "study"], Field(description="What has changed.")] = "series"
    SeriesInstanceUID: Annotated[str | None, Field(description="Null of a study.")]
    StudyInstanceUID: str
    Modality: Annotated[str | None, Field(description="Of a study all of its series', a backslash between.")] = None
    Source: Annotated[str | None, Field(description="Calling AE title, modality and station, as learnt for.")] = None
    Kinds: list[ChangeKind] = []
    Revision: Annotated[int, Field(description="A conflict makes none: it tells the one that stands.")]
    NumInstances: int
    NumSeries: Annotated[int | None, Field(description="Of a study.")] = None
    ExpectedInstances: int | None = None
    Missing: Annotated[int, Field(description="How many of the expected are not known; 0 where none are expected.")] = 0
    Verdict: SeriesVerdict | None
    Doubtful: Annotated[list[str], Field(description="What of its images breaks the standard, in words.")] = []
    At: AwareDatetime
    CalledAETitle: CalledTitle = None


class SeriesRecord(BaseModel):
    """A stored series: one row, the union of every report about it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    SeriesInstanceUID: Annotated[str, Field(description="The key of the row.")]
    PatientID: Annotated[str | None, Field(description="Null if the images have none.")]
    PatientName: Annotated[str | None, Field(description="Null if the images have none.")]
    StudyInstanceUID: Annotated[str, Field(description="The study that the series belongs to.")]
    NumInstances: Annotated[int, Field(description="Distinct SOP Instance UIDs known; it never goes down.")]
    Modality: Annotated[str | None, Field(description="Out of Attributes.")]
    Attributes: Annotated[
        dict[str, list[str]], Field(description="Study and series attributes, keyword to values in text form.")
    ]
    Undecoded: Annotated[
        dict[str, str],
        Field(
            description="Keyword to Base64: text that contradicts its character set; what Attributes has is a guess."
        ),
    ]
    Doubtful: Annotated[list[str], Field(description="What of its images breaks the standard, in words.")] = []
    Revision: Annotated[int, Field(description="Counts the reports that changed this record.")]
    Verdict: Annotated[SeriesVerdict | None, Field(description="Why the series is taken to be over; null: it is not.")]
    ExpectedInstances: Annotated[int | None, Field(description="How many there should be; null if nobody said.")]
    FirstReceivedAt: Annotated[AwareDatetime | None, Field(description="When its first image came.")]
    LastReceivedAt: Annotated[AwareDatetime | None, Field(description="When its last image came.")]
    UpdatedAt: Annotated[AwareDatetime, Field(description="When this record last changed.")]
    ExpectedFrom: Annotated[
        Literal["pacs", "tags"] | None, Field(description="Who says how many: the PACS, or a tag of the images.")
    ] = None
    Missing: Annotated[int, Field(description="How many of the expected are not known; 0 where none are expected.")] = 0
    Basis: Annotated[str | None, Field(description="What the verdict rests on, in words.")] = None
    Withdrawn: Annotated[
        SeriesVerdict | Literal["part"] | None,
        Field(description="A person has declared the series incomplete: the verdict that it had; `part`: none."),
    ] = None
    CalledAETitle: CalledTitle = None
    Source: Annotated[str | None, Field(description="Calling AE title, modality and station, as learnt for.")] = None
    FalseCompletions: Annotated[
        int, Field(description="How often images came after a verdict had said that the series was over.")
    ] = 0
    Conflicts: Annotated[
        int, Field(description="Reports kept aside because they name another PatientID or StudyInstanceUID.")
    ]


# --- what gateways are ordered ----------------------------------------------------------------------------------

Line = Annotated[str, Field(max_length=256), WithoutNul]
Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Completeness = Literal["complete", "incomplete"]
Why = Annotated[
    str,
    BeforeValidator(_clean),
    Field(
        max_length=MAX_BECAUSE, pattern=r"^[^\x00-\x1f\x7f]+$", description="Why, in a person's words; never logged."
    ),
]
OrderKind = Literal["declare", "replay", "discard", "count"]
"""What the server wants of a gateway. declare: report what is open of a series now, as `declared`. replay: post a dead
letter again. discard: give it up. count: ask the PACS what it has of the study of a series, and post the answer."""


class Order(BaseModel):
    """One thing that the server wants of a gateway, given with each answer to its heartbeat until that says it is done.

    Doing it twice does no harm.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    Number: Annotated[Positive, Field(description="Only ever grows.")]
    Kind: OrderKind
    AgeS: Annotated[FiniteFloat, Field(ge=0, le=1e9, description="Seconds since it was wanted.")]
    SeriesInstanceUID: Annotated[Uid | None, Field(description="Of declare and count.")] = None
    StudyInstanceUID: Annotated[Uid | None, Field(description="Of count.")] = None
    CallingAETitle: Annotated[Line | None, Field(description="Of count: the PACS's, as sender of the series.")] = None
    DeadLetter: Annotated[Positive | None, Field(description="Of replay and discard: its Id.")] = None

    @model_validator(mode="after")
    def _names_what_it_is_about(self) -> Self:
        if (self.DeadLetter if self.Kind in ("replay", "discard") else self.SeriesInstanceUID) is None:
            raise ValueError("names no series, or no dead letter")
        return self


class OrderDone(BaseModel):
    """What became of an order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    Number: Positive
    Problem: Annotated[Line | None, Field(description="Why nothing was done; null where it was.")] = None


# --- what gateways tell of themselves ---------------------------------------------------------------------------


WaitingFor = Literal["for images", "for silence", "for the PACS", "to be reported"]


class ArrivingSeries(BaseModel):
    """An open series of a gateway. Names its patient: for who may read series."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    SeriesInstanceUID: Uid
    StudyInstanceUID: Annotated[Uid | None, Field(description="Null of gateways before 0.3, as the next three.")] = None
    PatientID: PatientId = None
    PatientName: Text = None
    SeriesDescription: Text = None
    Source: Annotated[str, Field(max_length=64, description="Calling AE title, modality, station."), WithoutNul]
    Revision: Annotated[int, Field(strict=True, ge=1, lt=2**31)]
    Instances: Annotated[Count, Field(description="Of this revision, so far.")]
    Expected: Annotated[Count | None, Field(description="As a tag or the PACS says.")] = None
    Waiting: Annotated[
        WaitingFor,
        Field(description="What would have to happen before it is reported."),
    ] = "for images"
    FirstReceivedAt: Timestamp
    LastReceivedAt: Timestamp


class DeadReport(BaseModel):
    """A report that the server refused for good. Names no patient."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    SeriesInstanceUID: Uid
    Instances: Count
    Answer: Line
    At: Timestamp
    Id: Annotated[Positive | None, Field(description="Its name in orders; null of those before 0.3.")] = None


class HeardSource(BaseModel):
    """A source as a gateway knows it. Names no patient."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    Source: Annotated[
        str, Field(min_length=1, max_length=64, description="Calling AE title, modality, station."), WithoutNul
    ]
    LastReceivedAt: Timestamp
    LearntFrom: Annotated[Count, Field(description="So many of its series.")] = 0
    WaitS: Annotated[
        dict[Annotated[str, Field(pattern="^[a-z]{1,16}$")], Annotated[FiniteFloat, Field(ge=0)]],
        Field(max_length=16, description="What was learnt: how long a silence is waited for, by where it stands."),
    ] = {}


class GatewayState(BaseModel):
    """What a gateway tells the server of itself, once a second while something happens: its heartbeat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    GatewayID: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f/]+$")]
    At: Annotated[Timestamp, Field(description="By the gateway's clock.")]
    StartedAt: Timestamp
    Stopped: Annotated[bool, Field(description="Its last word: it drained and ended.")] = False
    AETitle: Line
    Address: Annotated[Line, Field(description="Host and port of its DICOM listener.")]
    Reason: Annotated[Line | None, Field(description="Why it takes nothing in; null while it does.")] = None
    Associations: Annotated[Count, Field(description="Established now.")]
    Refused: Annotated[Total, Field(description="Connections and associations, since it started.")]
    Instances: Annotated[Total, Field(description="Received since it started.")]
    Bytes: Annotated[Total, Field(description="Of their data sets.")]
    Received: Annotated[
        list[Count],
        Field(max_length=MAX_SLOTS, description=f"Instances per {SLOT_S} s, the oldest first; the last is not over."),
    ] = []
    InboxInstances: Count = 0
    InboxSize: Count
    OpenSeries: Count
    OpenInstances: Count
    UndeliveredReports: Count
    OldestUndeliveredS: Annotated[FiniteFloat, Field(strict=True, ge=0, description="0 where none is undelivered.")] = (
        0.0
    )
    LastProblem: Annotated[Line | None, Field(description="Of the last post that failed, while any waits.")] = None
    DeadLetters: Count
    Dead: Annotated[list[DeadReport], Field(max_length=MAX_DEAD)] = []
    Arriving: Annotated[list[ArrivingSeries], Field(max_length=MAX_ARRIVING)] = []
    OpenStudies: Annotated[
        list[Uid] | None,
        Field(max_length=MAX_OPEN_STUDIES, description="Of open series and undelivered reports; null: not all fit."),
    ] = None
    OrdersDone: Annotated[
        list[OrderDone],
        Field(max_length=MAX_ORDERS, description="What became of the server's orders, said until it has heard it."),
    ] = []
    Version: Annotated[Line | None, Field(description="Its software's; null of those before 0.2.")] = None
    Journal: Annotated[
        Line | None,
        Field(description="Its journal's, which keeps it under whatever GatewayID; null of those before 0.3."),
    ] = None
    Sources: Annotated[
        list[HeardSource], Field(max_length=MAX_HEARD, description="Those that images came from last.")
    ] = []
