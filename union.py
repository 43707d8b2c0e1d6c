"""What a report changes of what is known of its series. Pure: rows in, rows out; db.py reads and writes them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, get_args

from models import FINAL_VERDICTS, InstanceKeyword, SeriesReport

OF_STUDY = (  # of the patient and the study, and not of the series
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
SEARCHED = ("Modality", "StudyDate", "AccessionNumber")
SEARCHED_LENGTH = 64  # characters
INSTANCE_COLUMNS: tuple[InstanceKeyword, ...] = get_args(InstanceKeyword)

Row = Mapping[str, Any]


def new_row(report: SeriesReport, now: datetime) -> dict[str, Any]:
    """The row of a series that was not known; `changes` makes it revision 1 in the same transaction."""
    return {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "PatientID": report.PatientID,
        "StudyInstanceUID": report.StudyInstanceUID,
        "NumInstances": 0,
        "Attributes": {},
        "Undecoded": {},
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
    attributes |= {keyword: values for keyword, values in report.Attributes.items() if keyword in OF_STUDY}
    patient = known if report.PatientID is None else {"PatientID": report.PatientID, "PatientName": report.PatientName}
    undecoded = {k: v for k, v in known["Undecoded"].items() if k not in (*OF_STUDY, "PatientName", "PatientID")}
    return {
        "PatientID": patient["PatientID"],
        "PatientName": patient["PatientName"],
        "StudyInstanceUID": report.StudyInstanceUID,
        "Attributes": attributes,
        "Undecoded": {**report.Undecoded, **undecoded},
        **searched(attributes, patient["PatientName"]),
        "Revision": known["Revision"] + 1,
        "UpdatedAt": now,
    }


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
    attributes = {**report.Attributes, **known["Attributes"]}
    name = known["PatientName"] or report.PatientName
    changed: dict[str, Any] = {
        "PatientID": known["PatientID"] or report.PatientID,
        "PatientName": name,
        "NumInstances": union,
        "Attributes": attributes,
        "Undecoded": {**report.Undecoded, **known["Undecoded"]},
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


def searched(attributes: Mapping[str, list[str]], patient_name: str | None) -> dict[str, str | None]:
    """The columns that stand beside Attributes to be searched by, no longer than an index bears."""
    first = {keyword: next(iter(attributes.get(keyword, ())), "")[:SEARCHED_LENGTH] or None for keyword in SEARCHED}
    return first | {"FoldedName": patient_name and patient_name.casefold()[:SEARCHED_LENGTH]}


def contradicts_verdict(report: SeriesReport, known: Row, union: int) -> bool:
    """Whether a gateway has more images after it had said that the series was over."""
    return report.Revision > 1 and union > known["NumInstances"] and known["Verdict"] in FINAL_VERDICTS


SETTLED = ("Verdict", "Basis", "Source", "IdlePolicy", "ExpectedInstances", "ExpectedFrom")


def _settled(report: SeriesReport, known: Row, union: int) -> dict[str, Any]:
    """Verdict and what it rests on. `verified` stands only where the union here is what the PACS said twice."""
    added = union > known["NumInstances"]
    if not added and known["Verdict"] == "verified" and (report.ExpectedInstances or 0) <= union:
        return {column: known[column] for column in SETTLED}  # a report of before, repeated
    settled = {column: known[column] for column in ("Verdict", "Basis", "Source", "IdlePolicy")}
    if added or known["Verdict"] is None or report.Verdict == "verified":
        settled = {column: getattr(report, column) for column in settled}
    # Two gateways with a part each: neither had all, and the PACS told both the same.
    told_both = added and known["ExpectedFrom"] == "pacs" and known["ExpectedInstances"] == report.ExpectedInstances
    twice = report.Verdict == "verified" or (report.ExpectedFrom == "pacs" and told_both)
    if twice and union == report.ExpectedInstances:
        settled["Verdict"] = "verified"
    elif report.Verdict == "verified":
        settled |= {"Verdict": "idle", "Basis": f"{report.Basis}; {union} are known"}
    expected_by = report.ExpectedInstances is not None
    return settled | {
        "ExpectedInstances": report.ExpectedInstances if expected_by else known["ExpectedInstances"],
        "ExpectedFrom": report.ExpectedFrom if expected_by else known["ExpectedFrom"],
    }


def own_events(report: SeriesReport, known: Row, changed: Row) -> Iterator[dict[str, Any]]:
    """What the server adds to a series' timeline for a report that changed it."""
    added = changed["NumInstances"] - known["NumInstances"]
    own = {"At": changed["UpdatedAt"], "GatewayID": None, "Revision": changed["Revision"]}
    stored = {"Added": added, "Known": changed["NumInstances"], "Verdict": changed["Verdict"]}
    yield own | {"Event": "report.stored", "Details": stored}
    if contradicts_verdict(report, known, changed["NumInstances"]):
        wrong = {"Verdict": known["Verdict"], "IdlePolicy": known["IdlePolicy"], "Added": added}
        yield own | {"Event": "verdict.contradicted", "Details": wrong}


def conflict_row(report: SeriesReport, now: datetime) -> dict[str, Any]:
    """What is kept of a report that contradicts its series; a repeat has the same Digest."""
    content = json.dumps([*report.key, *sorted(report.SOPInstanceUIDs or ())])
    return {
        "SeriesInstanceUID": report.SeriesInstanceUID,
        "Digest": hashlib.sha256(content.encode()).hexdigest(),
        "Report": report.model_dump(mode="json"),
        "ReceivedAt": now,
    }
