"""What was learnt of sources' studies, and of the PACS that hold them: read for a decision, written last.

Many transactions want the same few rows: who locks one here locks nothing after it but the figures of verdicts.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy import bindparam, case, select, update

from storage import study_rules, study_silence
from storage.connection import Connection
from storage.engine import insert
from storage.revisions import figures_of
from storage.rows import StudyRow
from storage.schema import study_pacs, study_sources

MAX_SOURCES = 1000  # rows of what was learnt; sources beyond that learn together under an empty name
MAX_PACS = 1000  # the same of PACS; those beyond are not trusted
OF_SOURCES = select(study_sources).where(study_sources.c.Source.in_((bindparam("own"), "")))  # made once

log = structlog.get_logger()


class Learnt(NamedTuple):
    """What a change of a study teaches about its source and its PACS."""

    silence_s: float = 0.0
    came: str = ""
    """The kind of the series that ended the silence."""
    before: StudyRow | None = None
    """The study as it was then."""
    ended: StudyRow | None = None
    """The study, if it is told complete for the first time."""
    trust: int | None = None
    """1: its PACS held one more study whole from the start. 0: it did not."""


async def known(connection: Connection, row: StudyRow) -> Mapping[str, Any]:
    """Return what was learnt of a study's source; {} if nothing was."""
    own = row["Source"] or ""
    found = await connection.execute(OF_SOURCES, {"own": own})
    learnt = {one.Source: _readable(one.Source, one.Learnt) for one in found}
    return learnt.get(own) or learnt.get("") or {}


async def trust(connection: Connection, row: StudyRow) -> int:
    """Return how many studies like this its PACS has held whole from the start, in a row."""
    pacs, is_stored = study_rules.trusted_for(row)
    this = select(study_pacs.c.Trust).where(study_pacs.c["PACS"] == (pacs or ""), study_pacs.c.Stored == is_stored)
    return (await connection.execute(this)).scalar() or 0


async def learn(connection: Connection, row: StudyRow, learnt: Learnt, now: datetime) -> None:
    """Learn what a study has shown. `row` is as it is now."""
    if learnt.silence_s or learnt.ended is not None:
        await _learn(connection, row["Source"] or "", learnt, now)
    if learnt.trust is not None and row["PACS"]:
        await _trust(connection, row, learnt.trust, now)


async def _learn(connection: Connection, source: str, learnt: Learnt, now: datetime) -> None:
    name = await figures_of(connection, study_sources, source, MAX_SOURCES)
    await insert(connection, study_sources, {"Source": name, "Learnt": {}, "UpdatedAt": now})
    this = study_sources.c.Source == name
    stored = (await connection.execute(select(study_sources.c.Learnt).where(this).with_for_update())).scalar_one()
    content = _readable(name, stored)
    if learnt.silence_s and learnt.before is not None:
        study = study_rules.learnt_of(learnt.before)
        content = study_silence.learn(content, learnt.silence_s, study, learnt.came)
    if learnt.ended is not None:
        content = study_silence.ended(content, study_rules.learnt_of(learnt.ended))
    if content != stored:
        await connection.execute(update(study_sources).where(this).values(Learnt=content, UpdatedAt=now))


async def _trust(connection: Connection, row: StudyRow, one_more: int, now: datetime) -> None:
    pacs, is_stored = study_rules.trusted_for(row)
    if not await figures_of(connection, study_pacs, str(pacs), MAX_PACS):
        return
    values = {"PACS": pacs, "Stored": is_stored, "Trust": one_more, "UpdatedAt": now}
    counted = study_pacs.c.Trust + 1
    more = case((counted < study_rules.MAX_TRUST, counted), else_=study_rules.MAX_TRUST)
    await insert(connection, study_pacs, values, or_update={"Trust": more if one_more else 0, "UpdatedAt": now})


def _readable(source: str, learnt: Any) -> dict[str, Any]:
    """Return what was learnt; {} if it cannot be read, so that it is learnt again."""
    if study_silence.is_readable(learnt):
        return dict(learnt)
    log.warning("habits.unreadable", source=source)
    return {}
