"""What a report changes of what is known of its series. Pure: rows in, rows out; db.py reads and writes them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar, get_args

from models import (
    FINAL_VERDICTS,
    MAX_DOUBTS,
    ChangeKind,
    Completeness,
    Decision,
    InstanceKeyword,
    SeriesReport,
    fitting,
    fitting_bytes,
)
from models import news as more
from storage.folding import FOLDED_LENGTH, folded

OF_STUDY = (  # of the patient and the study, and not of the series
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
SEARCHED = {"Modality": 64, "StudyDate": 64, "AccessionNumber": FOLDED_LENGTH}  # characters that an index bears
FOLDED = {"PatientName": "FoldedName", "ReferringPhysicianName": "FoldedReferrer"}
BASIS_LENGTH = 256  # characters
STANDS = ("verified", "declared")  # what a person says adds nothing to
SETTLED = ("Verdict", "Basis", "Source", "IdlePolicy")
FIGURES = dict.fromkeys(FINAL_VERDICTS, "False") | {"capped": "AfterCapped"}
"""The verdicts that are counted, and as what images count that come after one."""
INSTANCE_COLUMNS: tuple[InstanceKeyword, ...] = get_args(InstanceKeyword)

Row = Mapping[str, Any]
Expectation = tuple[int | None, str | None]
T = TypeVar("T")


def new_row(report: SeriesReport, now: datetime) -> dict[str, Any]:
    """The row of a series that was not known; `changes` makes it revision 1 in the same transaction."""
    return {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "PatientID": report.PatientID,
        "StudyInstanceUID": report.StudyInstanceUID,
        "NumInstances": 0,
        "Attributes": {},
        "Undecoded": {},
        "Doubtful": [],
        "Revision": 0,
        "UpdatedAt": now,
        "Conflicts": 0,
        "FalseCompletions": 0,
    }


def contradicts(report: SeriesReport, known: Row) -> bool:
    """Another study, or another patient where both name one."""
    return report.StudyInstanceUID != known["StudyInstanceUID"] or (
        report.PatientID is not None and known["PatientID"] is not None and report.PatientID != known["PatientID"]
    )


def same_identity(report: SeriesReport, identity: Row) -> bool:
    """Whether a report is of just this patient and study; no patient is none, and not any."""
    return (report.StudyInstanceUID, report.PatientID) == (identity["StudyInstanceUID"], identity["PatientID"])


def corrected(report: SeriesReport, known: Row, now: datetime) -> dict[str, Any]:
    """The columns of a row whose patient and study become those of a report, which may leave some empty.

    A report that names no patient changes the study only.
    """
    attributes = {keyword: values for keyword, values in known["Attributes"].items() if keyword not in OF_STUDY}
    of_study = {keyword: values for keyword, values in report.Attributes.items() if keyword in OF_STUDY}
    attributes = fitting({**of_study, **attributes})
    patient = known if report.PatientID is None else {"PatientID": report.PatientID, "PatientName": report.PatientName}
    undecoded = {k: v for k, v in known["Undecoded"].items() if k not in (*OF_STUDY, "PatientName", "PatientID")}
    return {
        "PatientID": patient["PatientID"],
        "PatientName": patient["PatientName"],
        "StudyInstanceUID": report.StudyInstanceUID,
        "Attributes": attributes,
        "Undecoded": fitting_bytes({**undecoded, **_more(report.Undecoded, undecoded)}),
        **searched(attributes, patient["PatientName"]),
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


def decided(decision: Decision, report: SeriesReport, known: Row, instances: int, now: datetime) -> dict[str, Any]:
    """A row as it would be after a decision about a report in conflict, with so many instances in their union."""
    if decision == "dismiss":
        return {**known}
    row = {**known, **corrected(report, known, now)} if decision == "correct" else {**known}
    return row | changes(report, row, count(report, row, instances), now)


def instance_rows(report: SeriesReport) -> Iterator[dict[str, Any]]:
    """A row for each instance of a report; a value that is no number is left out."""
    uids = report.SOPInstanceUIDs or []
    columns = {name: report.InstanceAttributes.get(name) or [None] for name in INSTANCE_COLUMNS}
    constant = {name: _value(name, values[0]) for name, values in columns.items() if len(values) == 1}
    varying = {name: values for name, values in columns.items() if len(values) > 1}
    for at, uid in enumerate(uids):
        own = {name: _value(name, values[at]) for name, values in varying.items()}
        yield {"SeriesInstanceUID": report.SeriesInstanceUID, "SOPInstanceUID": uid} | constant | own


def _value(name: str, text: str | None) -> str | int | None:
    if name == "SOPClassUID" or text is None:
        return text
    try:
        number = int(text)
    except ValueError:
        return None
    return number if abs(number) < 2**31 else None


def count(report: SeriesReport, known: Row, instances: int) -> int:
    """Distinct instances, or the count reported without UIDs where that is more; never less than was known."""
    floor = report.NumInstances if report.SOPInstanceUIDs is None else 0
    return max(int(known["NumInstances"]), instances, floor)


def changes(report: SeriesReport, known: Row, union: int, now: datetime) -> dict[str, Any]:
    """The columns that a report changes: what is stored stays, what was empty is filled. Empty if it is no news."""
    attributes = fitting({**known["Attributes"], **more(report.Attributes, known["Attributes"])})
    name = known["PatientName"] or report.PatientName
    changed: dict[str, Any] = {
        "PatientID": known["PatientID"] or report.PatientID,
        "PatientName": name,
        "CalledAETitle": known["CalledAETitle"] or report.CalledAETitle,
        "NumInstances": union,
        "Attributes": attributes,
        "Undecoded": fitting_bytes({**known["Undecoded"], **_more(report.Undecoded, known["Undecoded"])}),
        "Doubtful": list(dict.fromkeys([*known["Doubtful"], *report.Doubtful]))[:MAX_DOUBTS],
        "FalseCompletions": known["FalseCompletions"] + contradicts_verdict(report, known, union),
        **searched(attributes, name),
        **_settled(report, known, union),
    }
    if known["Revision"] and all(known[column] == value for column, value in changed.items()):
        return {}
    first = [at for at in (known["FirstReceivedAt"], report.FirstReceivedAt) if at]
    last = [at for at in (known["LastReceivedAt"], report.LastReceivedAt) if at]
    return changed | {
        "FirstReceivedAt": min(first, default=None),
        "LastReceivedAt": max(last, default=None),
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


def _more(said: Mapping[str, T], known: Mapping[str, T]) -> dict[str, T]:
    return {keyword: value for keyword, value in said.items() if keyword not in known}


def searched(attributes: Mapping[str, list[str]], patient_name: str | None) -> dict[str, str | None]:
    """The columns that stand beside Attributes to be searched by, no longer than an index bears."""
    first = {keyword: next(iter(attributes.get(keyword, ())), "") for keyword in (*SEARCHED, *FOLDED)}
    first |= {"StudyDate": first["StudyDate"].replace(".", ""), "PatientName": patient_name or ""}  # ACR-NEMA's dots
    return {keyword: first[keyword][:length] or None for keyword, length in SEARCHED.items()} | {
        column: folded(first[keyword])[:FOLDED_LENGTH] or None for keyword, column in FOLDED.items()
    }


def contradicts_verdict(report: SeriesReport, known: Row, union: int) -> bool:
    """Whether a gateway has more images after it had said that the series was over."""
    return _is_late(report, known, union) and _claimed(known) in FINAL_VERDICTS


def _claimed(known: Row) -> str | None:
    """What images that come now are held against: the verdict, and also one that a person has withdrawn."""
    claimed: str | None = known["Verdict"] or known["Withdrawn"]
    return claimed


def _is_late(report: SeriesReport, known: Row, union: int) -> bool:
    return report.Revision > 1 and union > known["NumInstances"]


def completions(report: SeriesReport, known: Row, changed: Row) -> Iterator[tuple[Row, str]]:
    """What counts in the figures of verdicts: a row with the verdict in question, and the column.

    A verdict is counted with the images that it came with, or when it takes the place of another or of none.
    """
    late = _is_late(report, known, changed["NumInstances"])
    claimed = _claimed(known)
    if late and claimed in FIGURES:
        yield {**known, "Verdict": claimed}, FIGURES[claimed]
    news = changed["NumInstances"] > known["NumInstances"] or changed["Verdict"] != known["Verdict"]
    if news and changed["Verdict"] in FIGURES:
        yield changed, "Series"


# --- what a row claims ------------------------------------------------------------------------------------------


def truthful(row: Row) -> dict[str, Any]:
    """A row as it may be told: an earlier version stored some that claim more than what is known bears out."""
    expected, known = row["ExpectedInstances"], row["NumInstances"]
    told = {**row}
    if expected is not None and expected < known:
        told |= {"ExpectedInstances": None, "ExpectedFrom": None}
    no_more = row["Verdict"] == "expected" and told["ExpectedInstances"] is None
    if no_more or (row["Verdict"] == "verified" and (expected, row["ExpectedFrom"]) != (known, "pacs")):
        told["Verdict"] = "idle"
    return told


def _settled(report: SeriesReport, known: Row, union: int) -> dict[str, Any]:
    """Verdict and what it rests on.

    1. A report that adds images, and the first one with a verdict behind a part, says what the row says.
    2. `verified` is said by a report whose PACS has just as many as are known here, and by nothing else.
    3. Where the row's expectation is no longer what is known, `verified` gives way to what the report says.
    4. A person's word that the series is incomplete ends as soon as a report says the verdict; until then it has none.
    """
    added = union > known["NumInstances"]
    verified = _verifies(report, known, union)
    expected = (union, "pacs") if verified else _expected(report, known, union)
    gives_way = known["Verdict"] == "verified" and expected != (union, "pacs")
    first = known["Verdict"] is None and known["Withdrawn"] is None and report.Verdict is not None
    told: Row = known
    if added or first or gives_way or (verified and known["Verdict"] != "verified"):
        told = report.model_dump(include=set(SETTLED))
    settled = {column: told[column] for column in SETTLED}
    if told is not known and report.Verdict == "verified" and not verified:
        settled |= {"Verdict": "idle", "Basis": _said(report.Basis, f"{union} are known")}
    elif gives_way and not added and report.Verdict is None:
        settled = {column: known[column] for column in SETTLED}
        settled |= {"Verdict": "idle", "Basis": _said(known["Basis"], f"then {expected[0]}, {union} are known")}
    if settled["Verdict"] == "expected" and expected[0] is None:  # more are known than a tag said
        settled["Verdict"] = "idle"
    withdrawn = known["Withdrawn"] if told is known else None
    return settled | {"ExpectedInstances": expected[0], "ExpectedFrom": expected[1], "Withdrawn": withdrawn}


def _verifies(report: SeriesReport, known: Row, union: int) -> bool:
    """Whether a report's PACS has what is known here, and nobody has heard of more in the meantime."""
    if report.Verdict != "verified" or (report.ExpectedInstances, report.ExpectedFrom) != (union, "pacs"):
        return False
    more = known["ExpectedFrom"] == "pacs" and known["ExpectedInstances"] > union
    received, last = report.LastReceivedAt, known["LastReceivedAt"]
    return not (more and received is not None and last is not None and received < last)


def _expected(report: SeriesReport, known: Row, union: int) -> Expectation:
    """How many images there should be: never fewer than are known, and the PACS's word before that of tags.

    Of two things that the PACS said, the larger one stands, in whatever order they come.
    """
    stored = known["ExpectedInstances"], known["ExpectedFrom"]
    said = report.ExpectedInstances, report.ExpectedFrom
    added = union > known["NumInstances"]
    possible = [e for e in ((said, stored) if added else (stored, said)) if e[0] is not None and e[0] >= union]
    by_pacs = [e for e in possible if e[1] == "pacs"]
    return max(by_pacs) if by_pacs else next(iter(possible), (None, None))


def _said(basis: str | None, more: str) -> str:
    return "; ".join(filter(None, (basis, more)))[:BASIS_LENGTH]


def own_events(report: SeriesReport, known: Row, changed: Row) -> Iterator[dict[str, Any]]:
    """What the server adds to a series' timeline for a report that changed it."""
    added = changed["NumInstances"] - known["NumInstances"]
    own = {"At": changed["UpdatedAt"], "GatewayID": None, "Revision": changed["Revision"]}
    stored = {"Added": added, "Known": changed["NumInstances"], "Verdict": changed["Verdict"]}
    yield own | {"Event": "report.stored", "Details": stored}
    if contradicts_verdict(report, known, changed["NumInstances"]):
        wrong = {"Verdict": _claimed(known), "IdlePolicy": known["IdlePolicy"], "Added": added}
        yield own | {"Event": "verdict.contradicted", "Details": wrong}


def kinds(known: Row, row: Row) -> list[ChangeKind]:
    """What the next revision of a series is to those who are told of it."""
    told: list[ChangeKind] = ["revised" if known["Revision"] else "created"]
    news = row["NumInstances"] > known["NumInstances"] or row["Verdict"] != known["Verdict"]
    if news and row["Verdict"] == "verified":
        told.append("verified")
    if (news and row["Verdict"] == "declared") or (row["Withdrawn"] and not known["Withdrawn"]):
        told.append("declared")
    if row["FalseCompletions"] > known["FalseCompletions"]:
        told.append("contradicted")
    return told


# --- what a person says ------------------------------------------------------------------------------------------


class Word(NamedTuple):
    """What a person has said of a series."""

    declared: Completeness
    by: str
    because: str
    at: datetime

    @property
    def basis(self) -> str:
        """What a verdict then rests on."""
        return f"declared {self.declared} by {self.by}: {self.because}"[:BASIS_LENGTH]


def declared(known: Row, word: Word, now: datetime) -> dict[str, Any]:
    """The columns that a person's word changes. Empty if it is no news: `verified` is stronger than "complete"."""
    complete = word.declared == "complete"
    if known["Verdict"] in STANDS if complete else known["Withdrawn"]:
        return {}
    return {
        "Verdict": "declared" if complete else None,
        "Withdrawn": None if complete else known["Verdict"] or "part",
        "Basis": word.basis,
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


def without_verdict(report: SeriesReport, known: Row) -> SeriesReport:
    """A report that was made for the word "complete", when that was taken back: it brings images, and no verdict."""
    basis = known["Basis"] if known["Withdrawn"] else "declared complete, which was then taken back"
    return report.model_copy(update={"Verdict": None, "Basis": basis})


def still_incomplete(changed: dict[str, Any], known: Row) -> dict[str, Any]:
    """What such a report changes: a row to which it adds is one that a person has declared incomplete."""
    added = bool(changed) and changed["NumInstances"] > known["NumInstances"]
    return {**changed, "Withdrawn": known["Withdrawn"] or "declared"} if added else changed


# --- what others are told of ------------------------------------------------------------------------------------


def missing(row: Row) -> int:
    """How many images are expected and not known; none where none are expected."""
    return max(0, (row["ExpectedInstances"] or 0) - int(row["NumInstances"]))


def conflict_row(report: SeriesReport, now: datetime) -> dict[str, Any]:
    """What is kept of a report that contradicts its series; a repeat has the same Digest."""
    content = json.dumps([*report.key, *sorted(report.SOPInstanceUIDs or ())])
    return {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "Digest": hashlib.sha256(content.encode()).hexdigest(),
        "Report": report.model_dump(mode="json"),
        "ReceivedAt": now,
    }
