"""What a report changes of what is known of its series. Pure: rows in, rows out; db.py reads and writes them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, NamedTuple, TypeVar, cast

from common.attributes import news
from models import (
    FINAL_VERDICTS,
    INSTANCE_KEYWORDS,
    MAX_DOUBTS,
    ChangeKind,
    Completeness,
    SeriesReport,
    fitting,
    fitting_bytes,
)
from storage.answers import Decision
from storage.folding import FOLDED_LENGTH, folded
from storage.rows import Claim, SeriesRow, with_changes

STUDY_KEYWORDS = (  # attributes that belong to patient and study, not to the series
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
SEARCHED = {"Modality": 64, "StudyDate": 64, "AccessionNumber": FOLDED_LENGTH}  # characters that their index bears
FOLDED = {"PatientName": "FoldedName", "ReferringPhysicianName": "FoldedReferrer"}
BASIS_LENGTH = 256  # characters of Basis
STANDS = ("verified", "declared")  # verdicts to which a person's word adds nothing
SETTLED = tuple(Claim.__annotations__)
FIGURES = dict.fromkeys(FINAL_VERDICTS, "False") | {"capped": "AfterCapped"}
"""The verdicts that are counted, and the column in which images count that come after one."""

INSTANCE_COLUMNS = ("SeriesInstanceUID", "SOPInstanceUID", *INSTANCE_KEYWORDS)

Columns = dict[str, Any]
"""Columns of a row, with their new values."""
Expectation = tuple[int | None, str | None]
T = TypeVar("T")


def new_row(report: SeriesReport, now: datetime) -> SeriesRow:
    """Return the row of a series that is not known; `changes` makes it revision 1."""
    empty: Columns = dict.fromkeys(SeriesRow.__annotations__)
    own: Columns = {
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
    return cast("SeriesRow", empty | own)


def contradicts(report: SeriesReport, known: SeriesRow) -> bool:
    """Return whether a report names another study than the row, or another patient where both name one."""
    return report.StudyInstanceUID != known["StudyInstanceUID"] or (
        report.PatientID is not None and known["PatientID"] is not None and report.PatientID != known["PatientID"]
    )


def same_identity(report: SeriesReport, identity: Mapping[str, Any]) -> bool:
    """Return whether a report is of just this patient and study; no patient is none, and not any."""
    return (report.StudyInstanceUID, report.PatientID) == (identity["StudyInstanceUID"], identity["PatientID"])


def corrected(report: SeriesReport, known: SeriesRow, now: datetime) -> Columns:
    """Return the columns that change if patient and study become those of a report, which may leave some empty.

    A report that names no patient changes the study only.
    """
    attributes = {keyword: values for keyword, values in known["Attributes"].items() if keyword not in STUDY_KEYWORDS}
    of_study = {keyword: values for keyword, values in report.Attributes.items() if keyword in STUDY_KEYWORDS}
    attributes = fitting({**of_study, **attributes})
    patient_id, patient_name = (
        (known["PatientID"], known["PatientName"])
        if report.PatientID is None
        else (report.PatientID, report.PatientName)
    )
    undecoded = {k: v for k, v in known["Undecoded"].items() if k not in (*STUDY_KEYWORDS, "PatientName", "PatientID")}
    return {
        "PatientID": patient_id,
        "PatientName": patient_name,
        "StudyInstanceUID": report.StudyInstanceUID,
        "Attributes": attributes,
        "Undecoded": fitting_bytes({**undecoded, **_added(report.Undecoded, undecoded)}),
        **searched(attributes, patient_name),
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


def decided(decision: Decision, report: SeriesReport, known: SeriesRow, instances: int, now: datetime) -> SeriesRow:
    """Return a row as it would be after a decision about a report in conflict; `instances` are in their union."""
    if decision == "dismiss":
        return known
    row = with_changes(known, corrected(report, known, now)) if decision == "correct" else known
    return with_changes(row, changes(report, row, count(report, row, instances), now))


def instance_rows(report: SeriesReport) -> Iterator[tuple[str | int | None, ...]]:
    """Yield a row for each instance of a report, in the order of INSTANCE_COLUMNS; no number where a value is none."""
    uids = report.SOPInstanceUIDs or []
    columns = [_column(name, report.InstanceAttributes.get(name) or [None], len(uids)) for name in INSTANCE_KEYWORDS]
    return zip(repeat(report.SeriesInstanceUID, len(uids)), uids, *columns, strict=True)


def instance_numbers(report: SeriesReport) -> Iterator[int]:
    """Yield the InstanceNumbers of a report's instances."""
    at = INSTANCE_COLUMNS.index("InstanceNumber")
    return (number for row in instance_rows(report) if isinstance(number := row[at], int))


def _column(name: str, values: Sequence[str | None], instances: int) -> Iterable[str | int | None]:
    """Return the values of one column; a single one holds for all instances."""
    if len(values) == 1:
        return repeat(_value(name, values[0]), instances)
    return values if name == "SOPClassUID" else [_value(name, value) for value in values]


def _value(name: str, text: str | None) -> str | int | None:
    """Return the value of a column of `instances`; None where the text is no number that the column holds."""
    if name == "SOPClassUID" or text is None:
        return text
    try:
        number = int(text)
    except ValueError:
        return None
    return number if abs(number) < 2**31 else None


def count(report: SeriesReport, known: SeriesRow, instances: int) -> int:
    """Return how many instances a series has: the distinct ones, or as many as a report without UIDs says.

    It is never less than was known.
    """
    floor = report.NumInstances if report.SOPInstanceUIDs is None else 0
    return max(int(known["NumInstances"]), instances, floor)


def changes(report: SeriesReport, known: SeriesRow, union: int, now: datetime) -> Columns:
    """Return the columns that a report changes: what is stored stays, what was empty is filled. Empty if it is no news.

    `union`: how many instances are known with those of the report.
    """
    attributes = fitting({**known["Attributes"], **news(report.Attributes, known["Attributes"])})
    name = known["PatientName"] or report.PatientName
    changed: Columns = {
        "PatientID": known["PatientID"] or report.PatientID,
        "PatientName": name,
        "CalledAETitle": known["CalledAETitle"] or report.CalledAETitle,
        "NumInstances": union,
        "Attributes": attributes,
        "Undecoded": fitting_bytes({**known["Undecoded"], **_added(report.Undecoded, known["Undecoded"])}),
        "Doubtful": list(dict.fromkeys([*known["Doubtful"], *report.Doubtful]))[:MAX_DOUBTS],
        "FalseCompletions": known["FalseCompletions"] + contradicts_verdict(report, known, union),
        **searched(attributes, name),
        **_settled(report, known, union),
    }
    if known["Revision"] and changed.items() <= known.items():
        return {}
    first = [min(at, now) for at in (known["FirstReceivedAt"], report.FirstReceivedAt) if at]
    last = [min(at, now) for at in (known["LastReceivedAt"], report.LastReceivedAt) if at]
    return changed | {
        "FirstReceivedAt": min(first, default=None),
        "LastReceivedAt": max(last, default=None),
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


def _added(said: Mapping[str, T], known: Mapping[str, T]) -> dict[str, T]:
    """Return the entries whose keyword is not known yet."""
    return {keyword: value for keyword, value in said.items() if keyword not in known}


def searched(attributes: Mapping[str, list[str]], patient_name: str | None) -> dict[str, str | None]:
    """Return the columns that stand beside Attributes to be searched by, no longer than an index bears."""
    first = {keyword: next(iter(attributes.get(keyword, ())), "") for keyword in (*SEARCHED, *FOLDED)}
    first |= {"StudyDate": first["StudyDate"].replace(".", ""), "PatientName": patient_name or ""}  # ACR-NEMA's dots
    return {keyword: first[keyword][:length] or None for keyword, length in SEARCHED.items()} | {
        column: folded(first[keyword])[:FOLDED_LENGTH] or None for keyword, column in FOLDED.items()
    }


def contradicts_verdict(report: SeriesReport, known: SeriesRow, union: int) -> bool:
    """Return whether a gateway has more images after it had said that the series was over."""
    return _is_late(report, known, union) and _claimed(known) in FINAL_VERDICTS


def _claimed(known: SeriesRow) -> str | None:
    """Return the verdict that images which come now contradict, also if a person has withdrawn it."""
    return known["Verdict"] or known["Withdrawn"]


def _is_late(report: SeriesReport, known: SeriesRow, union: int) -> bool:
    """Return whether a report that is not its gateway's first one brings images."""
    return report.Revision > 1 and union > known["NumInstances"]


def completions(report: SeriesReport, known: SeriesRow, row: SeriesRow) -> Iterator[tuple[SeriesRow, str]]:
    """Yield what counts in the figures of verdicts: a row with the verdict in question, and the column.

    A verdict is counted with the images that it came with, or when it takes the place of another or of none.
    """
    claimed = _claimed(known)
    if claimed in FIGURES and _is_late(report, known, row["NumInstances"]):
        yield with_changes(known, {"Verdict": claimed}), FIGURES[claimed]
    if row["Verdict"] in FIGURES and says_more(known, row):
        yield row, "Series"


def says_more(known: SeriesRow, row: SeriesRow) -> bool:
    """Return whether a row has more images than before, or another verdict."""
    return row["NumInstances"] > known["NumInstances"] or row["Verdict"] != known["Verdict"]


# --- what a row claims ------------------------------------------------------------------------------------------


def truthful(row: Mapping[str, Any]) -> Columns:
    """Return a row as it may be told: an earlier version stored some that claim more than what is known bears out."""
    expected, known = row["ExpectedInstances"], row["NumInstances"]
    told = {**row}
    if expected is not None and expected < known:
        told |= {"ExpectedInstances": None, "ExpectedFrom": None}
    no_more = row["Verdict"] == "expected" and told["ExpectedInstances"] is None
    if no_more or (row["Verdict"] == "verified" and (expected, row["ExpectedFrom"]) != (known, "pacs")):
        told["Verdict"] = "idle"
    return told


def _settled(report: SeriesReport, known: SeriesRow, union: int) -> Columns:
    """Decide what a row says of its series once a report is in: verdict, what it rests on, how many are expected.

    The first case that applies decides the verdict (docs/verdicts.md has what each one claims).

    1. The report adds no image, is not the first to say a verdict, does not verify, and leaves `verified` true: the row
       says what it said, and stays withdrawn if a person has declared the series incomplete.
    2. The row was `verified`, and a report without image or verdict brings word that the PACS has more: `idle`.
    3. The report says `verified`, but its PACS has not just as many images as are known here: `idle`.
    4. The report says `expected`, but more images are known than its tag said: `idle`.
    5. All else: the row says what the report says. A part says nothing.
    """
    added = union > known["NumInstances"]
    verifies = _verifies(report, known, union)
    expected = (union, "pacs") if verifies else _expected(report, known, union)
    was_verified = known["Verdict"] == "verified"
    gives_way = was_verified and expected != (union, "pacs")
    first = report.Verdict is not None and _claimed(known) is None
    said = Claim(Verdict=report.Verdict, Basis=report.Basis, Source=report.Source, IdlePolicy=report.IdlePolicy)
    stood = Claim(
        Verdict=known["Verdict"], Basis=known["Basis"], Source=known["Source"], IdlePolicy=known["IdlePolicy"]
    )
    withdrawn = None
    if not (added or first or gives_way or (verifies and not was_verified)):  # 1
        told, withdrawn = stood, known["Withdrawn"]
    elif gives_way and not added and report.Verdict is None:  # 2
        told = _as_idle(stood, f"then {expected[0]}, {union} are known")
    elif report.Verdict == "verified" and not verifies:  # 3
        told = _as_idle(said, f"{union} are known")
    elif report.Verdict == "expected" and expected[0] is None:  # 4
        told = _as_idle(said)
    else:  # 5
        told = said
    return {**told, "ExpectedInstances": expected[0], "ExpectedFrom": expected[1], "Withdrawn": withdrawn}


def _as_idle(claim: Claim, why: str | None = None) -> Claim:
    """Return a claim as one of `idle`, and `why` behind what it rests on."""
    basis = claim["Basis"] if why is None else "; ".join(filter(None, (claim["Basis"], why)))[:BASIS_LENGTH]
    return {**claim, "Verdict": "idle", "Basis": basis}


def _verifies(report: SeriesReport, known: SeriesRow, union: int) -> bool:
    """Return whether a report's PACS has just what is known here, and nobody has heard of more in the meantime."""
    if report.Verdict != "verified" or (report.ExpectedInstances, report.ExpectedFrom) != (union, "pacs"):
        return False
    more = known["ExpectedFrom"] == "pacs" and (known["ExpectedInstances"] or 0) > union
    received, last = report.LastReceivedAt, known["LastReceivedAt"]
    return not (more and received is not None and last is not None and received < last)


def _expected(report: SeriesReport, known: SeriesRow, union: int) -> Expectation:
    """Return how many images there should be: never fewer than are known, and the PACS's word before that of tags.

    Of two numbers that the PACS said, the larger one stands, in whatever order they come.
    """
    stored = known["ExpectedInstances"], known["ExpectedFrom"]
    said = report.ExpectedInstances, report.ExpectedFrom
    added = union > known["NumInstances"]
    possible = [(n, by) for n, by in ((said, stored) if added else (stored, said)) if n is not None and n >= union]
    by_pacs = [(n, by) for n, by in possible if by == "pacs"]
    return max(by_pacs) if by_pacs else next(iter(possible), (None, None))


def own_events(report: SeriesReport, known: SeriesRow, row: SeriesRow) -> Iterator[dict[str, Any]]:
    """Yield what the server adds to a series' timeline for a report that changed it."""
    added = row["NumInstances"] - known["NumInstances"]
    own = {"At": row["UpdatedAt"], "GatewayID": None, "Revision": row["Revision"]}
    stored = {"Added": added, "Known": row["NumInstances"], "Verdict": row["Verdict"]}
    yield own | {"Event": "report.stored", "Details": stored}
    if contradicts_verdict(report, known, row["NumInstances"]):
        wrong = {"Verdict": _claimed(known), "IdlePolicy": known["IdlePolicy"], "Added": added}
        yield own | {"Event": "verdict.contradicted", "Details": wrong}


def kinds(known: SeriesRow, row: SeriesRow) -> list[ChangeKind]:
    """Return what the next revision of a series is to those who are told of it."""
    told: list[ChangeKind] = ["revised" if known["Revision"] else "created"]
    more = says_more(known, row)
    if more and row["Verdict"] == "verified":
        told.append("verified")
    if (more and row["Verdict"] == "declared") or (row["Withdrawn"] and not known["Withdrawn"]):
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
        """Return what a verdict that was declared rests on."""
        return f"declared {self.declared} by {self.by}: {self.because}"[:BASIS_LENGTH]


def declared(known: SeriesRow, word: Word, now: datetime) -> Columns:
    """Return the columns that a person's word changes. Empty if it is no news, as "complete" is of a verified row."""
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


def without_verdict(report: SeriesReport, known: SeriesRow) -> SeriesReport:
    """Return a report that was made for the word "complete", once that is taken back: it brings images, no verdict."""
    basis = known["Basis"] if known["Withdrawn"] else "declared complete, which was then taken back"
    return report.model_copy(update={"Verdict": None, "Basis": basis})


def still_incomplete(changed: Columns, known: SeriesRow) -> Columns:
    """Return what such a report changes: a row to which it adds is one that a person has declared incomplete."""
    added = bool(changed) and changed["NumInstances"] > known["NumInstances"]
    return {**changed, "Withdrawn": known["Withdrawn"] or "declared"} if added else changed


# --- what others are told of ------------------------------------------------------------------------------------


def missing(row: Mapping[str, Any]) -> int:
    """Return how many images are expected and not known; 0 where none are expected."""
    return max(0, (row["ExpectedInstances"] or 0) - int(row["NumInstances"]))


def conflict_row(report: SeriesReport, now: datetime) -> Columns:
    """Return the row that keeps a report which contradicts its series; a repeat has the same Digest."""
    content = json.dumps([*report.key, *sorted(report.SOPInstanceUIDs or ())])
    return {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "Digest": hashlib.sha256(content.encode()).hexdigest(),
        "Report": report.model_dump(mode="json"),
        "ReceivedAt": now,
    }
