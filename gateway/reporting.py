"""Make the report of a series: its content, the basis of its verdict, and the evidence. No I/O."""

import base64
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from dicom.header import COUNTS, INSTANCE_LEVEL, InstanceValues
from gateway.open_series import MAX_ARRIVALS, TEXT_LENGTH, OpenSeries, within_length
from models import (
    INSTANCE_KEYWORDS,
    MAX_DOUBTS,
    ArrivingSeries,
    InstanceKeyword,
    SeriesReport,
    SeriesVerdict,
    fitting,
    fitting_bytes,
    valid_unicode,
)

HINTS = {keyword for keyword, _ in COUNTS.values()}
"""Attributes that are reported only if a site wants them as its own."""
NOT_IN_ATTRIBUTES = {keyword for keyword, _ in INSTANCE_LEVEL.values()} | {
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
}


def full_report(series: OpenSeries, verdict: SeriesVerdict | None, basis: str) -> SeriesReport:
    """Return the report of all images of the revision."""
    uids = sorted(series.sop_instance_uids)
    expected, expected_from = expected_images(series)
    left_out = NOT_IN_ATTRIBUTES | {keyword for keyword in HINTS if keyword not in series.rules.extras}
    attributes = {k: list(v) for k, v in series.attributes.items() if k not in left_out}
    undecoded = {k: base64.b64encode(v).decode() for k, v in series.undecoded.items() if k not in INSTANCE_KEYWORDS}
    return SeriesReport(
        SeriesInstanceUID=series.key.series_instance_uid,
        PatientID=series.key.patient_id,
        PatientName="\\".join(series.attributes.get("PatientName", ())),
        StudyInstanceUID=series.key.study_instance_uid,
        NumInstances=len(uids),
        SOPInstanceUIDs=uids,
        InstanceAttributes=_columns([series.sop_instance_uids[uid] for uid in uids]),
        Attributes=fitting(attributes),
        Undecoded=fitting_bytes(undecoded),
        Doubtful=list(series.doubtful)[:MAX_DOUBTS],
        Revision=series.revision,
        Verdict=verdict,
        ExpectedInstances=expected,
        ExpectedFrom=expected_from,
        MissingSOPInstanceUIDs=series.missing(),
        StudyCounts=series.study_counts if verdict is not None else None,
        Basis=basis,
        Source=series.source.name,
        CalledAETitle=series.called_ae_title or None,
        IdlePolicy=series.rules.policy.name,
        Timeline=series.timeline,
        GatewayID=series.rules.gateway_id,
        FirstReceivedAt=series.first_received_at,
        LastReceivedAt=series.last_received_at,
    )


def least_report(series: OpenSeries, verdict: SeriesVerdict | None) -> SeriesReport:
    """Return a minimal report: only identity, images, source and doubts."""
    uids = sorted(series.sop_instance_uids)
    return SeriesReport(
        SeriesInstanceUID=series.key.series_instance_uid,
        PatientID=series.key.patient_id,
        StudyInstanceUID=series.key.study_instance_uid,
        NumInstances=len(uids),
        SOPInstanceUIDs=uids,
        Revision=series.revision,
        Verdict=verdict,
        Doubtful=list(series.doubtful)[:MAX_DOUBTS],
        Source=series.source.name[:64],
        CalledAETitle=series.called_ae_title[:64] or None,
        GatewayID=series.rules.gateway_id,
        FirstReceivedAt=series.first_received_at,
        LastReceivedAt=series.last_received_at,
    )


def arriving(series: OpenSeries) -> ArrivingSeries:
    """Return what a heartbeat tells about an open series."""
    return ArrivingSeries.model_construct(
        SeriesInstanceUID=series.key.series_instance_uid,
        StudyInstanceUID=series.key.study_instance_uid,
        PatientID=_shown(series.key.patient_id),
        PatientName=_shown("\\".join(series.attributes.get("PatientName", ()))),
        SeriesDescription=_shown("\\".join(series.attributes.get("SeriesDescription", ()))),
        Source=series.source.name,
        Revision=series.revision,
        Instances=len(series.sop_instance_uids),
        Expected=expected_images(series)[0],
        Waiting=series.waiting_for(),
        FirstReceivedAt=series.first_received_at,
        LastReceivedAt=series.last_received_at,
    )


def expected_images(series: OpenSeries) -> tuple[int | None, Literal["pacs", "tags"] | None]:
    """Return how many images there should be, and who says so. Numbers below the known images are ignored."""
    if series.said is not None:
        count, missing = series.said.answer.count or 0, len(series.missing())
        known = count - (series.lacking() or 0)  # the PACS may have the same number, but other images
        return (max(count, known + missing), "pacs") if count >= known else (None, None)
    in_tags = series.count_in_tags()
    enough = in_tags is not None and in_tags >= len(series.sop_instance_uids)
    return (in_tags, "tags") if enough else (None, None)


def basis_of(series: OpenSeries, verdict: SeriesVerdict, now: float) -> str:
    """Return the basis of a verdict in words."""
    reasons = series.idle_reasons if series.idle_hit else series.reasons()
    quiet = "quiet for {IdleTimeoutS:g} s ({Policy}, {Phase}, learnt from {LearntFrom} series)".format_map(reasons)
    said = "".join(f"; {evidence}" for evidence in _evidence(series))
    match verdict:
        case "verified" if series.said:
            answer, since = series.said.answer, series.said.since
            return within_length(
                f"{answer.pacs} has said {answer.count} for {now - since:.2g} s, and they are all here"
            )
        case "expected":
            return within_length(f"as many images as a tag says, and {quiet}{said}")
        case "idle":
            return within_length(quiet + said)
        case "capped":
            return within_length(f"open for max_open_s{said}")
        case "declared":
            return within_length(f"a person has declared it complete{said}")
    return within_length(f"an operator's request, or a stop{said}")


def _evidence(series: OpenSeries) -> Iterator[str]:
    """Yield facts about the end of a series that were not the reason for the decision."""
    if series.said is not None:
        answer = series.said.answer
        yield f"{answer.pacs}: {answer.count} images, {answer.known} known"
    if series.problem is not None:
        yield f"{series.source.calling_ae_title}: {series.problem}"
    yield from series.other_counts()


def note_end(series: OpenSeries, verdict: SeriesVerdict, now: float) -> None:
    """Note as evidence what each association brought, when the images came, and the verdict."""
    for association, images in series.images_brought.items():
        released = association not in series.open_associations
        ended_at = association.released_at if released and association.released_at is not None else now
        number = association.number
        series.note("images.counted", min(now, ended_at), Association=number, Images=images, Released=released)
    series.note("images.arrived", series.last_seen, Arrivals=_arrivals(series))
    series.note("series.reported", now, Verdict=verdict, Images=len(series.sop_instance_uids))


def _arrivals(series: OpenSeries) -> str:
    """Return how many images had come by when, in seconds after the first: `0:1 0.31:12 …`. It fits into a report."""
    last = series.last_seen, len(series.sop_instance_uids)
    for step in itertools.count(max(1, math.ceil(len(series.arrivals) / MAX_ARRIVALS))):
        points = series.arrivals[::step]
        points = points if points[-1][1] == last[1] else [*points, last]
        text = " ".join(f"{at - series.opened:.4g}:{count}" for at, count in points)
        if len(text) <= TEXT_LENGTH or len(points) <= 2:
            return text
    raise AssertionError  # unreachable: the loop does not end by itself


def _columns(instances: Sequence[InstanceValues]) -> dict[InstanceKeyword, list[str | None]]:
    """Return the values of all instances by keyword: one value if all have the same, no entry if none has any."""
    columns = zip(INSTANCE_KEYWORDS, zip(*instances, strict=True), strict=True)
    return {k: list(column if len(set(column)) > 1 else column[:1]) for k, column in columns if any(column)}


def _shown(text: str | None) -> str | None:
    """Return a text in valid Unicode, and as short as a heartbeat requires."""
    return valid_unicode(text[:TEXT_LENGTH]) if text else None
