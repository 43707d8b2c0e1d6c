"""Reports that were kept aside: listed, looked at with what each decision would change, and settled."""

from collections.abc import Iterator
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import Field

from api.answers import ConflictPage, Outlook, Resolve, Would
from api.parameters import KNOWN_ONLY, Limit
from api.routing import DECIDES, READS, Changes, Db, answers
from common import metrics
from models import SeriesRecord, Uid

NOT_SHOWN = {"UpdatedAt", "Basis", "Conflicts", "Doubtful", "Undecoded", "Attributes", "Revision", "IdlePolicy"}
UNKNOWN = "no open conflict with this digest"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
log = structlog.get_logger()
router = APIRouter()


@router.get("/conflicts", responses=answers(), dependencies=[READS, KNOWN_ONLY])
async def list_conflicts(
    database: Db,
    resolved: Annotated[bool, Query(description="Those that are resolved instead of those that are open.")] = False,
    SeriesInstanceUID: Annotated[Uid | None, Query(description="Only those of this series.")] = None,
    after: Annotated[Digest | None, Query(description="`next` of the page before.")] = None,
    limit: Limit = 100,
) -> ConflictPage:
    """List reports that were kept aside because they name another patient or study for a known series.

    A page ends early where its reports are large.
    """
    which: dict[str, Any] = {"resolved": resolved, "series_instance_uid": SeriesInstanceUID}
    page = await database.conflicts(after=after, limit=limit, **which)
    more = bool(page) and await database.has_conflicts(after=page[-1].Digest, **which)
    return ConflictPage(conflicts=page, next=page[-1].Digest if more else None)


@router.get("/conflicts/{digest}", responses=answers(404, 408, 413), dependencies=[READS, KNOWN_ONLY])
async def foresee(digest: Digest, database: Db) -> Outlook:
    """Show an open conflict beside the record of its series, and what of that each decision would change now."""
    found = await database.foresee(digest)
    if found is None:
        raise HTTPException(404, UNKNOWN)
    conflict, record, outcomes = found
    would = {decision: [*differences(record, after)] for decision, after in outcomes.items()}
    return Outlook(Conflict=conflict, Record=record, Would=would)


def differences(before: SeriesRecord, after: SeriesRecord) -> Iterator[Would]:
    """Yield what a person would see change of a record, field by field, each attribute by itself."""
    for name in SeriesRecord.model_fields:
        if name not in NOT_SHOWN and getattr(before, name) != getattr(after, name):
            yield Would(What=name, Before=_shown(getattr(before, name)), After=_shown(getattr(after, name)))
    for keyword in sorted((before.Attributes.keys() | after.Attributes.keys()) - SeriesRecord.model_fields.keys()):
        old, new = before.Attributes.get(keyword), after.Attributes.get(keyword)
        if old != new:
            yield Would(What=keyword, Before=_shown(old), After=_shown(new))


def _shown(value: Any) -> str | None:
    """Return a value as it is read; several values as DICOM joins them."""
    return None if value is None else "\\".join(value) if isinstance(value, list) else str(value)


@router.post("/conflicts/{digest}", responses=answers(404, 408, 413), dependencies=[DECIDES])
async def resolve_conflict(
    digest: Digest, resolution: Resolve, database: Db, follower: Changes, request: Request
) -> SeriesRecord:
    """Settle a conflict, as an operator decides. What was stored before stays in the conflict."""
    record = await database.resolve(digest, resolution.Resolution, request.state.who)
    if record is None:
        raise HTTPException(404, UNKNOWN)
    follower.stored()
    uid, decision = record.SeriesInstanceUID, resolution.Resolution
    request.state.done |= {"conflict": digest, "decision": decision, "series_instance_uid": uid}
    metrics.conflicts_resolved.labels(decision).inc()
    log.info("conflict.resolved", series_instance_uid=uid, decision=decision)
    return record
