"""A person's word that a study is complete, or that it is not: what it makes of its row, and of gateways' orders."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select

from storage import orders, studies, study_rules
from storage.answers import StudyRecord
from storage.connection import Connection
from storage.declarations import ANSWERS_WITHIN
from storage.merge import Word
from storage.rows import with_changes
from storage.schema import gateways
from storage.studies import Told
from storage.study_listing import as_study

_SAID = [gateways.c.State[name].label(name) for name in ("Stopped", "Arriving", "OpenStudies")]
_STATES = select(gateways.c.GatewayID, gateways.c.At, *_SAID).order_by(gateways.c.GatewayID)


class DeclaredStudy(NamedTuple):
    """What came of a person's word about a study. Gateways are named by their GatewayID."""

    record: StudyRecord
    """The record as it is now."""
    changed: bool
    closing: list[str] = []
    """Gateways that have series of it open, and are told to close them: it is declared once they have."""
    untold: list[str] = []
    """Gateways of which too many orders wait."""


async def declare(
    connection: Connection, study_instance_uid: str, word: Word, now: datetime
) -> tuple[DeclaredStudy | None, list[Told]]:
    """Take a person's word for a study; None if it is not stored. Return also what is told.

    1. A try of ours whose answer was lost has done it already: `now` is the same in every try.
    2. "complete": each gateway is ordered to report the series that it names as open. While one that was heard of
       within ANSWERS_WITHIN has any, the study has no verdict yet; else it is `declared`, unless it is that or
       `verified`.
    3. "incomplete": orders that were given for the word "complete" are taken back, and the study loses its verdict
       until images come or it is verified.
    """
    row, one = await studies.hold(connection, study_instance_uid)
    if row is None or one is None:
        return None, []
    if row["UpdatedAt"] == now:
        return DeclaredStudy(as_study(row), changed=True), []
    closing = _Closing()
    if word.declared == "incomplete":
        await orders.withdraw_study(connection, study_instance_uid, now)
    else:
        closing = await _close(connection, study_instance_uid, word, now)
    columns = study_rules.declared(row, word, now, waits=closing.waits)
    after = with_changes(row, columns)
    after, told = await studies.write(connection, row, after, one, now) if columns else (after, [])
    for change in told:
        await studies.count_verdicts(connection, row, after, change)
    return DeclaredStudy(as_study(after), bool(columns), closing.told, closing.untold), told


class _Closing(NamedTuple):
    """Which gateways are told to close series of a study, which are not, and if one will soon report some of it."""

    told: list[str] = []
    untold: list[str] = []
    waits: bool = False


async def _close(connection: Connection, study_instance_uid: str, word: Word, now: datetime) -> _Closing:
    """Order what gateways have open of a study to be reported."""
    told: list[str] = []
    untold: list[str] = []
    waits = False
    for state in (await connection.execute(_STATES)).mappings().all():
        if state["Stopped"]:
            continue
        named = {one["SeriesInstanceUID"] for one in state["Arriving"] or () if _is_of(one, study_instance_uid)}
        gateway, all_told = state["GatewayID"], True
        for uid in sorted(named):
            about = {"SeriesInstanceUID": uid, "StudyInstanceUID": study_instance_uid}
            what: dict[str, Any] = {"by": word.by, "because": word.because, "now": now}
            all_told = await orders.give(connection, gateway, "declare", about, **what) is not None and all_told
        if named:
            (told if all_told else untold).append(gateway)
        has_any = bool(named) or study_instance_uid in (state["OpenStudies"] or ())
        waits = waits or (has_any and state["At"] > now - ANSWERS_WITHIN)
    return _Closing(told, untold, waits)


def _is_of(arriving: Mapping[str, Any], study_instance_uid: str) -> bool:
    return arriving.get("StudyInstanceUID") == study_instance_uid
