"""A person's word that a series is complete, or that it is not: what it makes of the row, and of gateways' orders."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import select

from models import SeriesRecord
from storage import history, merge, orders, studies
from storage.connection import Connection
from storage.merge import Word
from storage.revisions import as_record, count_verdict, locked, revise
from storage.rows import SeriesRow, with_changes
from storage.schema import timeline

ANSWERS_WITHIN = timedelta(seconds=30)  # how recently a gateway was heard of that is waited for with what it has open


class Declared(NamedTuple):
    """What came of a person's word about a series. Gateways are named by their GatewayID."""

    record: SeriesRecord | None
    """The record as it is now; None if the series is not stored yet."""
    changed: bool
    closing: list[str] = []
    """Gateways that have it open, and are told to close it: the row follows with their report."""
    told: list[str] = []
    """Gateways that may have it open all the same, and are told, too."""
    untold: list[str] = []
    """Gateways of which too many orders wait."""


async def declare(connection: Connection, uid: str, word: Word, now: datetime) -> Declared | None:
    """Take a person's word for a series; None if it is known neither here nor at a gateway.

    1. A try of ours whose answer was lost has done it already: `now` is the same in every try.
    2. "complete" goes to the gateways first (`_declare_complete`).
    3. "incomplete" withdraws the orders to report the series, and the row's verdict. Without a row the orders are all
       that there was to take back.
    """
    known = await locked(connection, uid)
    if known is not None and known["UpdatedAt"] == now:
        return Declared(as_record(known), changed=True)
    if word.declared == "complete":
        return await _declare_complete(connection, uid, known, word, now)
    withdrawn = await orders.withdraw(connection, uid, now)
    if known is None:
        return Declared(None, changed=False) if withdrawn else None
    changed = await _take_word(connection, known, word, now)
    return Declared(as_record({**known, **changed}), bool(changed))


async def _declare_complete(
    connection: Connection, uid: str, known: SeriesRow | None, word: Word, now: datetime
) -> Declared | None:
    """Order the gateways that run to report what they have open of a series, and let its row take the word.

    1. Nobody has it open and no row is there: there is nothing to declare.
    2. Every gateway that runs is ordered to, unless the row says `verified` or `declared` already and none has it open.
    3. Where a gateway that has it open will answer soon, the row follows with its report; else it takes the word now.
    """
    running = await orders.running(connection, uid, alone=known is None)  # else its row is locked
    closing = [gateway for gateway, (_, is_open) in running.items() if is_open]
    if not closing and known is None:
        return None
    given: dict[str, Mapping[str, Any] | None] = {}
    awaited: set[str] = set()
    if closing or (known is not None and known["Verdict"] not in merge.STANDS):
        late = await orders.waits_since(connection, uid, now - ANSWERS_WITHIN)
        awaited = {gateway for gateway in closing if running[gateway][0] > now - ANSWERS_WITHIN} - late
        for gateway in running:
            what: dict[str, Any] = {"by": word.by, "because": word.because, "now": now, "settles": gateway in awaited}
            given[gateway] = await orders.give(connection, gateway, "declare", {"SeriesInstanceUID": uid}, **what)
    record, changed = None, False
    if known is not None:
        is_new = any(order is not None and order["At"] == now for order in given.values())
        columns = {} if awaited else await _take_word(connection, known, word, now)
        if is_new and not columns:
            await note_word(connection, known, word)
        record, changed = as_record({**known, **columns}), bool(columns)
    told = [gateway for gateway, order in given.items() if order is not None]
    told, closing = [one for one in told if one not in closing], [one for one in told if one in closing]
    return Declared(record, changed, closing, told, [one for one, order in given.items() if order is None])


async def settle(connection: Connection, order: Mapping[str, Any], now: datetime) -> None:
    """Let the row take the person's word: each gateway that had the series open had reported it before the order came.

    Nothing is done while another gateway may still report it.
    """
    word = orders.word_of(order)
    if word is None or not await orders.closed_nowhere(connection, order):
        return
    known = await locked(connection, order["SeriesInstanceUID"])
    if known is not None:
        await _take_word(connection, known, word, now)


async def _take_word(connection: Connection, known: SeriesRow, word: Word, now: datetime) -> Mapping[str, Any]:
    """Let a row say what a person has said; return the columns that changed."""
    changed = merge.declared(known, word, now)
    if changed:
        await revise(connection, known, changed)
        row = with_changes(known, changed)
        await note_word(connection, row, word)
        await studies.keep(connection, known, row, now)
        if row["Verdict"]:
            await count_verdict(connection, row, "Series")
    return changed


async def note_word(connection: Connection, row: SeriesRow, word: Word) -> None:
    """Say in the timeline of a series who has said what, and why, once."""
    event = {"SeriesInstanceUID": row["SeriesInstanceUID"], "At": word.at, "Event": "series.declared"}
    same = (timeline.c[name] == value for name, value in event.items())
    if (await connection.execute(select(timeline.c.Id).where(*same).limit(1))).first() is None:
        details: dict[str, str | None] = {"Declared": word.declared, "By": word.by, "Because": word.because}
        if word.declared == "incomplete":
            details["Withdrawn"] = row["Withdrawn"]
        entry = event | {"GatewayID": None, "Revision": row["Revision"], "Details": details}
        await history.add(connection, row["SeriesInstanceUID"], [entry])
