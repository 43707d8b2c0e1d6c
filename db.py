"""The server's database: what is known of each series, what contradicted it, and what changed, in order.

SQLite and PostgreSQL alike. Behind it, in storage/, stand the tables (schema.py), what a report changes (merge.py), and
how a database is opened and when a transaction is tried again (engine.py); what else is asked of a database stands in
files of its own, and hangs on it: keys, webhooks, sources, the live page's `latest` and `stored`, QIDO-RS's `finder`,
the `purger`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, get_args

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common import metrics
from common.errors import GatewayError
from common.settings import ServerSettings
from models import (
    Change,
    ChangeKind,
    Completeness,
    Completion,
    Conflict,
    Decision,
    Gateway,
    GatewayState,
    Order,
    OrderKind,
    SeriesEvent,
    SeriesRecord,
    SeriesReport,
    fitting,
    fitting_bytes,
)
from storage import history, merge, orders
from storage.engine import Engine, insert
from storage.heartbeats import Heartbeats
from storage.keys import Keys
from storage.latest import Latest
from storage.listing import Listing, select_listed
from storage.matching import Octets
from storage.merge import Word
from storage.orders import Orders
from storage.purge import Purger, recall
from storage.schema import changes, completions, conflicts, counters, gateways, instances, series, timeline
from storage.search import Finder
from storage.sources import Sources, note_sent
from storage.stored import Stored
from storage.webhooks import Webhooks

NUMBERED_AT_ONCE = 1000
IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID", "Attributes")
TOLD = (
    *("SeriesInstanceUID", "StudyInstanceUID", "Modality", "Source", "CalledAETitle"),
    *("Revision", "NumInstances", "ExpectedInstances", "Verdict", "Doubtful"),
)
MERGED = ("merge", "correct")
CONFLICTS_BYTES = 4 * 2**20  # of the reports in one page of conflicts
FORGOTTEN_AFTER = timedelta(days=1)  # a gateway that says nothing
ANSWERS_WITHIN = timedelta(seconds=30)  # a gateway that runs; what one has open is waited for so long
MAX_GATEWAYS = 256  # known at once: those that spoke last
ALL = Listing()
MAX_COMPLETIONS = 5000  # rows; figures of sources beyond that stand together under an empty name


class TooManyOrders(GatewayError):
    """A gateway has not taken those that it was given."""


class Declaration(NamedTuple):
    """What came of a person's word about a series. Gateways are named by their GatewayID."""

    record: SeriesRecord | None
    """As it is now; None where it is not stored yet."""
    changed: bool
    closing: list[str] = []
    """Those that have it open, and are told to close it: the row follows with their report."""
    told: list[str] = []
    """Those that may have it open all the same, and are told, too."""
    untold: list[str] = []
    """Those of which too many orders wait."""


class Outlook(NamedTuple):
    """What each decision about an open conflict would make of its series' record, and what is stored."""

    conflict: Conflict
    record: SeriesRecord
    outcomes: dict[Decision, SeriesRecord]


class Database:
    """Series, as every server process on the same database sees them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.finder = Finder(engine)
        self.heartbeats = Heartbeats(engine)
        self.keys = Keys(engine)
        self.latest = Latest(engine)
        self.stored = Stored(engine)
        self.orders = Orders(engine)
        self.purger = Purger(engine)
        self.sources = Sources(engine)
        self.webhooks = Webhooks(engine)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ServerSettings) -> AsyncIterator["Database"]:
        """Open the database, bringing its schema up to date. Raises DatabaseUnusable."""
        async with Engine.open(settings) as engine:
            yield cls(engine)

    # --- reports in ---

    async def store(self, report: SeriesReport) -> tuple[SeriesRecord, bool]:
        """Take the union of a report and what is known, in one transaction; the stored record, and whether it is new.

        The result does not depend on repetition or order. A report that names another PatientID or
        StudyInstanceUID than the record is kept in `conflicts` and changes nothing else.
        """
        record, known, created = await self._engine.write(partial(_store, report=report))
        _measure(record, known, created)
        return record, created

    async def resolve(self, digest: str, decision: Decision, by: str) -> SeriesRecord | None:
        """Settle a conflict; the record as it is then, None where there is no such open conflict."""
        now = datetime.now(UTC)  # the same in every try: so a try knows what the one before it has done
        return await self._engine.write(partial(_resolve, digest=digest, decision=decision, by=by, now=now))

    async def declare(
        self, series_instance_uid: str, declared: Completeness, by: str, because: str
    ) -> Declaration | None:
        """Take a person's word for a series; None where it is known neither here nor at a gateway.

        1. "complete": gateways are ordered to report what they have open of it. Where one that runs has, the row
           follows with its report; else it is `declared` at once, unless it is that or `verified` already.
        2. "incomplete": orders to close it are taken back; the row loses its verdict until images come or it is
           verified. A gateway that has closed it before it heard of that brings no verdict with its report.
        """
        now = datetime.now(UTC)
        word = Word(declared, by, because, now)
        return await self._engine.write(partial(_declare, uid=series_instance_uid, word=word, now=now))

    async def order(self, gateway_id: str, kind: OrderKind, dead_letter: int, by: str, because: str | None) -> Any:
        """Order something about a dead letter of a gateway; its row, None where the gateway is not known.

        Raises TooManyOrders.
        """
        now = datetime.now(UTC)
        what = {"kind": kind, "about": {"DeadLetter": dead_letter}, "by": by, "because": because, "now": now}
        return await self._engine.write(partial(_order, gateway_id=gateway_id, what=what))

    async def heard(self, state: GatewayState) -> tuple[list[Order], list[dict[str, Any]]]:
        """Keep what a gateway says of itself, in place of what it said before.

        What it is to do, and those of its orders of which it says for the first time what became of them.
        """
        return await self._engine.write(partial(_hear, state=state))

    # --- what is known ---

    async def get(self, series_instance_uid: str) -> SeriesRecord | None:
        """The record of one series, None where it is not known."""
        rows = await self._engine.read(_by_uid(series_instance_uid))
        return _record(rows[0]) if rows else None

    async def page(self, *, after: Sequence[Any] | None, limit: int, listing: Listing = ALL) -> list[SeriesRecord]:
        """Up to `limit` records of a listing, in its order, behind the values `after` of its columns."""
        rows = await self._engine.read(select_listed(listing, after, limit))
        return [_record(row) for row in rows]

    async def instances(self, series_instance_uid: str) -> list[str]:
        """The SOP Instance UIDs known of a series, in order; none where it is not known."""
        query = select(instances.c.SOPInstanceUID).where(instances.c.SeriesInstanceUID == series_instance_uid)
        rows = await self._engine.read(query.order_by(instances.c.SOPInstanceUID))
        return [str(row["SOPInstanceUID"]) for row in rows]

    async def timeline(self, series_instance_uid: str) -> list[SeriesEvent]:
        """What happened to a series, in order of time."""
        query = select(timeline).where(timeline.c.SeriesInstanceUID == series_instance_uid)
        rows = await self._engine.read(query.order_by(timeline.c.At, timeline.c.Id))
        return [SeriesEvent.model_validate(row) for row in rows]

    async def completions(self) -> list[Completion]:
        """How verdicts have fared, by source, policy and verdict."""
        return [Completion.model_validate(row) for row in await self._engine.read(select(completions))]

    async def conflicts(
        self, *, after: str | None, limit: int, resolved: bool, series_instance_uid: str | None = None
    ) -> list[Conflict]:
        """Up to `limit` open or resolved conflicts, of one series or of all, in order of Digest behind `after`.

        Together they have CONFLICTS_BYTES at most, or there is only one: a report can be as large as a body.
        """
        size = Octets(conflicts.c.Report) + func.coalesce(Octets(conflicts.c.Before), 0)
        digests = _digests(after, resolved, series_instance_uid)
        found = await self._engine.read(digests.add_columns(size.label("size")).limit(limit))
        sizes = accumulate(row["size"] for row in found)
        few = [row["Digest"] for row, up_to in zip(found, sizes, strict=True) if up_to <= CONFLICTS_BYTES]
        these = few or [row["Digest"] for row in found[:1]]
        query = select(conflicts).where(conflicts.c.Digest.in_(these)).order_by(conflicts.c.Digest)
        return [_conflict(row) for row in await self._engine.read(query)]

    async def has_conflicts(self, *, after: str, resolved: bool, series_instance_uid: str | None = None) -> bool:
        """Whether there are any behind `after`."""
        return bool(await self._engine.read(_digests(after, resolved, series_instance_uid).limit(1)))

    async def foresee(self, digest: str) -> Outlook | None:
        """What each decision would make of a conflict's series, as it is now; None where it is not open."""
        is_open = (conflicts.c.Digest == digest) & conflicts.c.Resolution.is_(None)
        rows = await self._engine.read(select(conflicts).where(is_open))
        known = await self._engine.read(_by_uid(rows[0]["SeriesInstanceUID"])) if rows else []
        if not known:
            return None
        conflict, row = _conflict(rows[0]), merge.truthful(known[0])
        union = {*await self.instances(conflict.SeriesInstanceUID), *(conflict.Report.SOPInstanceUIDs or ())}
        outcomes: dict[Decision, SeriesRecord] = {
            decision: _record(merge.decided(decision, conflict.Report, row, len(union), datetime.now(UTC)))
            for decision in get_args(Decision)
        }
        return Outlook(conflict, _record(row), outcomes)

    async def changes(self, *, since: int, limit: int) -> list[Change]:
        """Up to `limit` changes behind the number `since`, in order. Later ones will have a higher number."""
        await self._number_changes()
        query = select(changes).where(changes.c.Number > since).order_by(changes.c.Number).limit(limit)
        return [_change(row) for row in await self._engine.read(query)]

    async def last_change(self) -> int:
        """The highest number that was given, also if that change was purged."""
        await self._number_changes()
        rows = await self._engine.read(select(counters.c.Value).where(counters.c.Name == "changes"))
        return int(rows[0]["Value"]) if rows else 0

    async def gateways(self) -> list[Gateway]:
        """What each gateway said last, in order of GatewayID."""
        now = datetime.now(UTC)
        rows = await self._engine.read(select(gateways).order_by(gateways.c.GatewayID))
        return [_gateway(row, now) for row in rows]

    async def ping(self) -> None:
        """Raises DatabaseUnavailable where the database cannot be read."""
        await self._engine.read(select(series.c.NumInstances).limit(1))

    async def _number_changes(self) -> None:
        """Give numbers to the revisions that were committed since the last time."""
        without = select(changes.c.Id).where(changes.c.Number.is_(None)).limit(1)
        while await self._engine.read(without):
            await self._engine.write(_number)


# --- storing a report -------------------------------------------------------------------------------------------


def _measure(record: SeriesRecord, known: Mapping[str, Any], created: bool) -> None:
    """Count what became of a report."""
    metrics.instances_stored.inc(record.NumInstances - known["NumInstances"])
    in_conflict = record.Conflicts > known["Conflicts"]
    changed = "revised" if record.Revision > known["Revision"] else "unchanged"
    metrics.reports_stored.labels("created" if created else "conflict" if in_conflict else changed).inc()


async def _store(connection: AsyncConnection, report: SeriesReport) -> tuple[SeriesRecord, Mapping[str, Any], bool]:
    """The record, the row before, and whether that was made for it."""
    now = datetime.now(UTC)
    known = None
    while known is None:  # purged between the two statements, it is made anew
        inserted = await insert(connection, series, merge.new_row(report, now))
        known = await _locked(connection, report.SeriesInstanceUID)
    if inserted and (event := await recall(connection, report.SeriesInstanceUID, now)):
        await history.add(connection, report.SeriesInstanceUID, [event])
    if merge.contradicts(report, known) and not await _was_merged(connection, report):
        changed = await _keep_conflict(connection, report, known, now)
        await note_sent(connection, report, now, images=0, series=0)
    else:
        changed = await _unite(connection, report, known, now)
    return _record({**known, **changed}), known, inserted == 1


async def _locked(connection: AsyncConnection, series_instance_uid: str) -> Mapping[str, Any] | None:
    """The row of a series, which no other transaction changes or removes until this one ends; None: there is none."""
    query = _by_uid(series_instance_uid).with_for_update()
    row = (await connection.execute(query)).mappings().one_or_none()
    return row and merge.truthful(row)


async def _unite(
    connection: AsyncConnection, report: SeriesReport, known: Mapping[str, Any], now: datetime
) -> Mapping[str, Any]:
    """Add what the report brings; the columns that changed."""
    order = await orders.made_for(connection, report)
    word = None if order is None else orders.word_of(order)
    taken_back = order is not None and order["Problem"] == orders.WITHDRAWN and known["Verdict"] != "declared"
    if word is not None:
        report = report.model_copy(update={"Basis": word.basis})
    elif taken_back:
        report = merge.without_verdict(report, known)
    if rows := list(merge.instance_rows(report)):
        await insert(connection, instances, rows, fill=merge.INSTANCE_COLUMNS)
    of_series = instances.c.SeriesInstanceUID == report.SeriesInstanceUID
    counted = (await connection.execute(select(func.count()).select_from(instances).where(of_series))).scalar_one()
    changed = merge.changes(report, known, merge.count(report, known, int(counted)), now)
    if taken_back:
        changed = merge.still_incomplete(changed, known)
    if changed:
        await _revise(connection, known, changed)
    await history.keep(connection, report, known, changed)
    if word is not None:
        await _note_word(connection, {**known, **changed}, word)
    if changed:
        for of, column in merge.completions(report, known, changed):
            await _count_verdict(connection, of, column)
    added = changed.get("NumInstances", known["NumInstances"]) - known["NumInstances"]
    new = bool(changed) and not known["Revision"]
    await note_sent(connection, report, now, images=added, series=int(new))
    return changed


async def _revise(connection: AsyncConnection, known: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Make the next revision of a row, and let it be told."""
    await _update(connection, known["SeriesInstanceUID"], changed)
    row = {**known, **changed}
    await _tell(connection, row, merge.kinds(known, row), row["UpdatedAt"])


async def _tell(connection: AsyncConnection, row: Mapping[str, Any], kinds: Sequence[ChangeKind], at: datetime) -> None:
    """Let those who follow know how a series stands now."""
    values = {column: row[column] for column in TOLD}
    await connection.execute(changes.insert().values(values | {"Kinds": " ".join(kinds), "At": at}))


async def _update(connection: AsyncConnection, series_instance_uid: str, changed: Mapping[str, Any]) -> None:
    await connection.execute(series.update().where(series.c.SeriesInstanceUID == series_instance_uid).values(changed))


async def _count_verdict(connection: AsyncConnection, of: Mapping[str, Any], column: str) -> None:
    """Last of the transaction: many reports want the same few rows."""
    key = {"Source": of["Source"] or "", "IdlePolicy": of["IdlePolicy"] or "", "Verdict": of["Verdict"]}
    key["Source"] = await _figures_of(connection, key["Source"])
    counts = dict.fromkeys(("Series", "False", "AfterCapped"), 0) | {column: 1}
    await insert(connection, completions, key | counts, or_update={column: completions.c[column] + 1})


async def _figures_of(connection: AsyncConnection, source: str) -> str:
    """The source that its verdicts are counted under: who sends chooses its names, and not how many rows there are."""
    rows = select(func.count()).select_from(completions)
    known = (await connection.execute(rows.where(completions.c.Source == source))).scalar_one()
    return source if known or (await connection.execute(rows)).scalar_one() < MAX_COMPLETIONS else ""


# --- gateways ---------------------------------------------------------------------------------------------------


async def _hear(connection: AsyncConnection, state: GatewayState) -> tuple[list[Order], list[dict[str, Any]]]:
    now = datetime.now(UTC)
    said = {"At": now, "State": state.model_dump(mode="json")}
    await insert(connection, gateways, {"GatewayID": state.GatewayID} | said, or_update=said)
    await connection.execute(gateways.delete().where(gateways.c.At < now - FORGOTTEN_AFTER))
    latest = select(gateways.c.GatewayID).order_by(gateways.c.At.desc(), gateways.c.GatewayID)
    await connection.execute(gateways.delete().where(gateways.c.GatewayID.in_(latest.offset(MAX_GATEWAYS))))
    ended = await orders.acknowledge(connection, state, now)
    for order in ended:
        if order["Problem"] and order["Kind"] == "declare":
            await _settle(connection, order, now)
    return await orders.waiting(connection, state.GatewayID, now), ended


async def _settle(connection: AsyncConnection, order: Mapping[str, Any], now: datetime) -> None:
    """A gateway that had a series open has reported it before it was ordered to: the row takes the person's word."""
    word = orders.word_of(order)
    if word is None or not await orders.closed_nowhere(connection, order):
        return
    uid = order["SeriesInstanceUID"]
    known = (await connection.execute(_by_uid(uid).with_for_update())).mappings().one_or_none()
    if known is not None:
        await _take_word(connection, merge.truthful(known), word, now)


async def _order(connection: AsyncConnection, gateway_id: str, what: Mapping[str, Any]) -> Mapping[str, Any] | None:
    known = select(gateways.c.GatewayID).where(gateways.c.GatewayID == gateway_id)
    if (await connection.execute(known)).first() is None:
        return None
    given = await orders.give(connection, gateway_id, **what)
    if given is None:
        raise TooManyOrders(f"{orders.MAX_WAITING} orders wait at {gateway_id} already: does it run, in this version?")
    return given


def _gateway(row: Mapping[str, Any], now: datetime) -> Gateway:
    """A newer server beside this one may keep fields that it does not know."""
    state = GatewayState.model_validate(row["State"], extra="ignore")
    return Gateway(SeenAt=row["At"], SilentS=round(max(0.0, (now - row["At"]).total_seconds()), 3), State=state)


# --- a person's word --------------------------------------------------------------------------------------------


async def _declare(connection: AsyncConnection, uid: str, word: Word, now: datetime) -> Declaration | None:
    known = await _locked(connection, uid)
    if known is not None and known["UpdatedAt"] == now:  # by a try of ours whose answer was lost
        return Declaration(_record(known), True)
    if word.declared == "complete":
        return await _declare_complete(connection, uid, known, word, now)
    withdrawn = await orders.withdraw(connection, uid, now)
    if known is None:
        return Declaration(None, False) if withdrawn else None
    changed = await _take_word(connection, known, word, now)
    return Declaration(_record({**known, **changed}), bool(changed))


async def _declare_complete(
    connection: AsyncConnection, uid: str, known: Mapping[str, Any] | None, word: Word, now: datetime
) -> Declaration | None:
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
            await _note_word(connection, known, word)
        record, changed = _record({**known, **columns}), bool(columns)
    told = [gateway for gateway, order in given.items() if order is not None]
    told, closing = [one for one in told if one not in closing], [one for one in told if one in closing]
    return Declaration(record, changed, closing, told, [one for one, order in given.items() if order is None])


async def _take_word(
    connection: AsyncConnection, known: Mapping[str, Any], word: Word, now: datetime
) -> Mapping[str, Any]:
    """Let a row say what a person has said; the columns that changed."""
    changed = merge.declared(known, word, now)
    if changed:
        await _revise(connection, known, changed)
        await _note_word(connection, {**known, **changed}, word)
        if changed["Verdict"]:
            await _count_verdict(connection, {**known, **changed}, "Series")
    return changed


async def _note_word(connection: AsyncConnection, row: Mapping[str, Any], word: Word) -> None:
    """Say in the timeline of a series who has said what, and why, once."""
    event = {"SeriesInstanceUID": row["SeriesInstanceUID"], "At": word.at, "Event": "series.declared"}
    same = (timeline.c[name] == value for name, value in event.items())
    if (await connection.execute(select(timeline.c.Id).where(*same).limit(1))).first() is None:
        details = {"Declared": word.declared, "By": word.by, "Because": word.because}
        if word.declared == "incomplete":
            details["Withdrawn"] = row["Withdrawn"]
        entry = event | {"GatewayID": None, "Revision": row["Revision"], "Details": details}
        await history.add(connection, row["SeriesInstanceUID"], [entry])


# --- conflicts --------------------------------------------------------------------------------------------------


async def _keep_conflict(
    connection: AsyncConnection, report: SeriesReport, known: Mapping[str, Any], now: datetime
) -> Mapping[str, Any]:
    """Keep a report aside, and let that be told, once."""
    if await insert(connection, conflicts, merge.conflict_row(report, now)):
        await _tell(connection, known, ["conflict"], now)
    return await _count_conflicts(connection, report.SeriesInstanceUID)


def _digests(after: str | None, resolved: bool, series_instance_uid: str | None = None) -> Select[Any]:
    query = select(conflicts.c.Digest).order_by(conflicts.c.Digest)
    query = query.where(conflicts.c.Resolution.is_not(None) if resolved else conflicts.c.Resolution.is_(None))
    if series_instance_uid is not None:
        query = query.where(conflicts.c.SeriesInstanceUID == series_instance_uid)
    return query if after is None else query.where(conflicts.c.Digest > after)


def _conflict(row: Mapping[str, Any]) -> Conflict:
    before = row["Before"] and {**row["Before"], "Attributes": fitting(row["Before"]["Attributes"])}
    return Conflict.model_validate({**row, "Report": _kept_report(row["Report"]), "Before": before})


def _kept_report(kept: Mapping[str, Any]) -> SeriesReport:
    """An earlier version kept reports without bounds."""
    bounded = {"Attributes": fitting(kept["Attributes"]), "Undecoded": fitting_bytes(kept["Undecoded"])}
    return SeriesReport.model_validate({**kept, **bounded})


async def _count_conflicts(connection: AsyncConnection, series_instance_uid: str) -> Mapping[str, Any]:
    unresolved = (conflicts.c.SeriesInstanceUID == series_instance_uid) & conflicts.c.Resolution.is_(None)
    count = (await connection.execute(select(func.count()).select_from(conflicts).where(unresolved))).scalar_one()
    await _update(connection, series_instance_uid, {"Conflicts": count})
    return {"Conflicts": count}


async def _was_merged(connection: AsyncConnection, report: SeriesReport) -> bool:
    """Whether an operator has said that what this patient and study send belongs to the series."""
    of_series = conflicts.c.SeriesInstanceUID == report.SeriesInstanceUID
    merged = select(conflicts.c.Report, conflicts.c.Before).where(of_series & conflicts.c.Resolution.in_(MERGED))
    rows = (await connection.execute(merged)).mappings()
    identities = [identity for row in rows for identity in (row["Report"], row["Before"]) if identity]
    return any(merge.same_identity(report, identity) for identity in identities)


async def _resolve(
    connection: AsyncConnection, digest: str, decision: Decision, by: str, now: datetime
) -> SeriesRecord | None:
    found = (await connection.execute(select(conflicts).where(conflicts.c.Digest == digest))).mappings().one_or_none()
    if found is None:
        return None
    known = await _locked(connection, found["SeriesInstanceUID"])
    if known is None:  # it was settled, and purged in this moment
        return None
    report = _kept_report(found["Report"])
    resolution: dict[str, Any] = {"Resolution": decision, "ResolvedAt": now, "ResolvedBy": by}
    if decision == "correct":
        resolution["Before"] = {column: known[column] for column in IDENTITY}
    still_open = (conflicts.c.Digest == digest) & conflicts.c.Resolution.is_(None)
    resolved = await connection.execute(conflicts.update().where(still_open).values(resolution))
    if resolved.rowcount != 1:  # by another operator, or by a try of ours whose answer was lost
        return _record(known) if found["ResolvedAt"] == now else None
    if decision == "correct":
        corrected = merge.corrected(report, known, now)
        await _revise(connection, known, corrected)
        known = {**known, **corrected}
    if decision in MERGED:
        known = {**known, **await _unite(connection, report, known, now)}
    counted = await _count_conflicts(connection, report.SeriesInstanceUID)
    event = {"At": now, "GatewayID": None, "Revision": known["Revision"], "Event": "conflict.resolved"}
    details = {"Decision": decision, "Digest": digest}
    await history.add(connection, report.SeriesInstanceUID, [event | {"Details": details}])
    return _record({**known, **counted})


# --- the order of changes ---------------------------------------------------------------------------------------


async def _number(connection: AsyncConnection) -> None:
    """Number what is committed, one process at a time; of one series, what came first gets the lower number."""
    counter = counters.c.Name == "changes"
    await insert(connection, counters, {"Name": "changes", "Value": 0})
    last = (await connection.execute(select(counters.c.Value).where(counter).with_for_update())).scalar_one()
    unnumbered = select(changes.c.Id).where(changes.c.Number.is_(None)).order_by(changes.c.Id).limit(NUMBERED_AT_ONCE)
    ids = list((await connection.execute(unnumbered)).scalars())
    if ids:
        rows = [{"id": id_, "number": number} for number, id_ in enumerate(ids, int(last) + 1)]
        give = changes.update().where(changes.c.Id == bindparam("id")).values(Number=bindparam("number"))
        await connection.execute(give, rows)
        await connection.execute(counters.update().where(counter).values(Value=last + len(ids)))


def _by_uid(series_instance_uid: str) -> Select[Any]:
    return select(series).where(series.c.SeriesInstanceUID == series_instance_uid)


def _record(row: Mapping[str, Any]) -> SeriesRecord:
    told = merge.truthful(row)
    return SeriesRecord.model_validate(told | {"Missing": merge.missing(told)})


def _change(row: Mapping[str, Any]) -> Change:
    return Change.model_validate({**row, "Kinds": (row["Kinds"] or "").split(), "Missing": merge.missing(row)})
