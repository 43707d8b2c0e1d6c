"""The server's database: what is known of each series, what contradicted it, and what changed, in order.

SQLite and PostgreSQL alike. Behind it, in storage/, stand the tables (schema.py), what a report changes (merge.py), how
that becomes the next revision of a row (revisions.py), and how a database is opened and when a transaction is tried
again (engine.py); what else is asked of a database stands in files of its own, and hangs on it: keys, webhooks,
sources, the live page's `latest` and `stored`, QIDO-RS's `finder`, the `purger`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, cast, get_args

import structlog
from sqlalchemy import Select, bindparam, func, not_, select

from common import metrics
from common.required import required_series
from common.settings import ServerSettings
from models import (
    Change,
    Completeness,
    CountsOfStudy,
    GatewayState,
    Order,
    OrderKind,
    SeriesRecord,
    SeriesReport,
    Subjects,
    fitting,
    fitting_bytes,
)
from storage import declarations, heartbeats, history, merge, orders, revisions, studies, study_declarations
from storage.answers import Completion, Conflict, Decision, Gateway, SeriesEvent, StudyRecord
from storage.connection import Connection
from storage.declarations import Declared
from storage.engine import DatabaseUnavailable, Engine, insert
from storage.heartbeats import Heartbeats
from storage.keys import Keys
from storage.latest import Latest
from storage.leaps import Leaps
from storage.listing import Listing, StudyListing, select_listed
from storage.matching import Octets
from storage.merge import Word
from storage.orders import Orders, TooManyOrders
from storage.purge import Purger, recall
from storage.revisions import (
    as_record,
    count_verdict,
    locked,
    revise,
    select_series,
    tell,
    update,
)
from storage.rows import SeriesRow, with_changes
from storage.schema import IS_OF_STUDY, changes, completions, conflicts, counters, gateways, instances, series, timeline
from storage.search import Finder
from storage.sources import Sources, note_sent
from storage.stored import Stored
from storage.studies import ComesAgain, Terms, Told
from storage.study_declarations import DeclaredStudy
from storage.study_listing import as_study, open_series, select_study
from storage.study_views import StudyViews
from storage.webhooks import Webhooks

NUMBERED_AT_ONCE = 1000  # changes in one transaction
IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID", "Attributes")
MERGED = ("merge", "correct")
CONFLICTS_BYTES = 4 * 2**20  # bytes of the reports in one page of conflicts
LOOKED_AT = 20  # studies that a heartbeat lets go and that are decided before it is answered; others follow
DUE_AT_ONCE = 100  # studies of one look at what is due
ALL, ALL_STUDIES = Listing(), StudyListing()

log = structlog.get_logger()


class Foreseen(NamedTuple):
    """An open conflict, the record of its series, and what each decision would make of that."""

    conflict: Conflict
    record: SeriesRecord
    outcomes: dict[Decision, SeriesRecord]


class Database:
    """Series, as every server process on the same database sees them."""

    def __init__(self, engine: Engine, terms: Terms = Terms()) -> None:  # noqa: B008 - it never changes
        self.engine = engine
        self.leaps = Leaps()
        self._terms = terms._replace(leaps=self.leaps)
        self.finder = Finder(engine)
        self.heartbeats = Heartbeats(engine)
        self.keys = Keys(engine)
        self.latest = Latest(engine)
        self.stored = Stored(engine)
        self.orders = Orders(engine)
        self.purger = Purger(engine)
        self.sources = Sources(engine)
        self.study_views = StudyViews(engine)
        self.webhooks = Webhooks(engine)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ServerSettings) -> AsyncIterator["Database"]:
        """Open the database, bringing its schema up to date. Raises DatabaseUnusable."""
        terms = Terms(timedelta(seconds=settings.study_max_open_s), required_series(settings.required_series))
        async with Engine.open(settings) as engine:
            yield cls(engine, terms)

    async def unkept_promises(self) -> list[str]:
        """Return the settings of PostgreSQL that are off, for want of which a power cut loses what was committed."""
        return await self.engine.unkept_promises()

    # --- reports in ---

    async def store(self, report: SeriesReport) -> tuple[SeriesRecord, bool]:
        """Take the union of a report and what is known, in one transaction; return the record, and whether it is new.

        The result does not depend on repetition or order. A report that names another PatientID or
        StudyInstanceUID than the record is kept in `conflicts` and changes nothing else.
        """
        record, known, created, told = await self.engine.write(partial(_store, report=report, terms=self._terms))
        _measure(record, known, created)
        studies.measure(told)
        return record, created

    async def resolve(self, digest: str, decision: Decision, by: str) -> SeriesRecord | None:
        """Settle a conflict; return the record as it is then, None if there is no such open conflict."""
        now = datetime.now(UTC)  # the same in every try: so a try knows what the one before it has done
        resolve = partial(_resolve, digest=digest, decision=decision, by=by, now=now, terms=self._terms)
        record, told = await self.engine.write(resolve)
        studies.measure(told)
        return record

    async def declare(self, series_instance_uid: str, declared: Completeness, by: str, because: str) -> Declared | None:
        """Take a person's word for a series; return None if it is known neither here nor at a gateway.

        1. "complete": gateways are ordered to report what they have open of it. Where one that runs has, the row
           follows with its report; else it is `declared` at once, unless it is that or `verified` already.
        2. "incomplete": orders to close it are taken back; the row loses its verdict until images come or it is
           verified. A gateway that has closed it before it heard of that brings no verdict with its report.
        """
        now = datetime.now(UTC)
        word = Word(declared, by, because, now)
        return await self.engine.write(partial(declarations.declare, uid=series_instance_uid, word=word, now=now))

    async def declare_study(
        self, study_instance_uid: str, declared: Completeness, by: str, because: str
    ) -> DeclaredStudy | None:
        """Take a person's word for a study; return None if it is not stored.

        1. "complete": gateways are ordered to report what they have open of it. Where one that runs has, it is
           `declared` once that is here; else at once, unless it is that or `verified` already.
        2. "incomplete": these orders are taken back, and it loses its verdict until images come or it is verified.
        """
        now = datetime.now(UTC)
        word = Word(declared, by, because, now)
        declare = partial(study_declarations.declare, study_instance_uid=study_instance_uid, word=word, now=now)
        done, told = await self.engine.write(declare)
        studies.measure(told)
        return done and done._replace(record=await self._counted(done.record))

    async def count_study(
        self, study_instance_uid: str, counts: CountsOfStudy, gateway_id: str | None
    ) -> StudyRecord | None:
        """Take what its PACS has of a study, and decide with it; return the record, None if it is not stored."""
        asked = partial(studies.look, study_instance_uid=study_instance_uid, terms=self._terms, now=datetime.now(UTC))
        row, told = await self.engine.write(partial(asked, counts=counts, gateway_id=gateway_id))
        studies.measure(told)
        return await self._counted(as_study(row)) if row else None

    async def _counted(self, record: StudyRecord) -> StudyRecord:
        """Return the record with how many of its series gateways name as open."""
        are_open = await open_series(self.engine)
        return record.model_copy(update={"OpenSeries": are_open.get(record.StudyInstanceUID, 0)})

    async def decide_due(self) -> int:
        """Decide about studies that are due, DUE_AT_ONCE at most; return how many were. Others may do the same.

        What another transaction changes meanwhile is left to that. One that cannot be decided is put off, and does not
        keep others from being decided.
        """
        now = datetime.now(UTC)
        due = await self.engine.read(studies.select_due(now, DUE_AT_ONCE, self._terms.max_open))
        return sum([await self._look_or_put_off(row["StudyInstanceUID"]) for row in due])

    async def _look_or_put_off(self, study_instance_uid: str) -> bool:
        try:
            return await self._look(study_instance_uid)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # a bug of ours, or what an earlier one has stored
            log.error("study.failed", study_instance_uid=study_instance_uid, exc_info=error)
            now = datetime.now(UTC)
            await self.engine.write(partial(studies.put_off, study_instance_uid=study_instance_uid, now=now))
            return True

    async def _look(self, study_instance_uid: str) -> bool:
        """Decide about a study as it is now; return whether it was there, and free."""
        asked = partial(studies.look, study_instance_uid=study_instance_uid, terms=self._terms, now=datetime.now(UTC))
        row, told = await self.engine.write(partial(asked, wait=False))
        studies.measure(told)
        return row is not None

    async def order(self, gateway_id: str, kind: OrderKind, dead_letter: int, by: str, because: str | None) -> Any:
        """Order something about a dead letter of a gateway; return its row, None if the gateway is not known.

        Raises TooManyOrders.
        """
        now = datetime.now(UTC)
        what = {"kind": kind, "about": {"DeadLetter": dead_letter}, "by": by, "because": because, "now": now}
        return await self.engine.write(partial(_order, gateway_id=gateway_id, what=what))

    async def heard(self, state: GatewayState) -> tuple[list[Order], list[dict[str, Any]]]:
        """Keep what a gateway says of itself, in place of what it said before.

        Return what it is to do, and the orders of which it says for the first time what became of them. Studies that it
        no longer names are decided: the first LOOKED_AT now, others soon.
        """
        orders, ended, freed = await self.engine.write(
            partial(_hear, state=state, came_at=datetime.now(UTC), leaps=self.leaps)
        )
        with suppress(DatabaseUnavailable):  # they are looked at later, too
            if later := freed[LOOKED_AT:]:
                now = datetime.now(UTC)
                await self.engine.write(lambda connection: studies.make_due(connection, later, now))
            for uid in freed[:LOOKED_AT]:
                await self._look_or_put_off(uid)
        return orders, ended

    # --- what is known ---

    async def get(self, series_instance_uid: str) -> SeriesRecord | None:
        """Return the record of one series, None if it is not known."""
        rows = await self.engine.read(select_series(series_instance_uid))
        return as_record(rows[0]) if rows else None

    async def page(self, *, after: Sequence[Any] | None, limit: int, listing: Listing = ALL) -> list[SeriesRecord]:
        """Return up to `limit` records of a listing, in its order, behind the values `after` of its columns."""
        rows = await self.engine.read(select_listed(listing, after, limit))
        return [as_record(row) for row in rows]

    async def study(self, study_instance_uid: str) -> StudyRecord | None:
        """Return the record of one study, None if no series of it is stored."""
        rows = await self.engine.read(select_study(study_instance_uid))
        return await self._counted(as_study(rows[0])) if rows else None

    async def studies(
        self, *, after: Sequence[Any] | None, limit: int, listing: StudyListing = ALL_STUDIES
    ) -> list[StudyRecord]:
        """Return up to `limit` records of studies of a listing, in its order, behind the values `after`."""
        rows = await self.engine.read(select_listed(listing, after, limit))
        are_open = await open_series(self.engine) if rows else {}
        return [as_study(row, are_open.get(row["StudyInstanceUID"], 0)) for row in rows]

    async def instances(self, series_instance_uid: str) -> list[str]:
        """Return the SOP Instance UIDs known of a series, in order; none if it is not known."""
        query = select(instances.c.SOPInstanceUID).where(instances.c.SeriesInstanceUID == series_instance_uid)
        rows = await self.engine.read(query.order_by(instances.c.SOPInstanceUID))
        return [str(row["SOPInstanceUID"]) for row in rows]

    async def timeline(self, series_instance_uid: str) -> list[SeriesEvent]:
        """Return what happened to a series, in order of time."""
        query = select(timeline).where(timeline.c.SeriesInstanceUID == series_instance_uid)
        rows = await self.engine.read(query.order_by(timeline.c.At, timeline.c.Id))
        return [SeriesEvent.model_validate(row) for row in rows]

    async def completions(self) -> list[Completion]:
        """Count how verdicts have fared, by source, policy and verdict."""
        return [Completion.model_validate(row) for row in await self.engine.read(select(completions))]

    async def conflicts(
        self, *, after: str | None, limit: int, resolved: bool, series_instance_uid: str | None = None
    ) -> list[Conflict]:
        """Return up to `limit` open or resolved conflicts, of one series or of all, in order of Digest behind `after`.

        Together they have CONFLICTS_BYTES at most, or there is only one: a report can be as large as a body.
        """
        size = Octets(conflicts.c.Report) + func.coalesce(Octets(conflicts.c.Before), 0)
        digests = _digests(after, resolved, series_instance_uid)
        found = await self.engine.read(digests.add_columns(size.label("size")).limit(limit))
        sizes = accumulate(row["size"] for row in found)
        few = [row["Digest"] for row, up_to in zip(found, sizes, strict=True) if up_to <= CONFLICTS_BYTES]
        these = few or [row["Digest"] for row in found[:1]]
        query = select(conflicts).where(conflicts.c.Digest.in_(these)).order_by(conflicts.c.Digest)
        return [_conflict(row) for row in await self.engine.read(query)]

    async def has_conflicts(self, *, after: str, resolved: bool, series_instance_uid: str | None = None) -> bool:
        """Return whether there are any behind `after`."""
        return bool(await self.engine.read(_digests(after, resolved, series_instance_uid).limit(1)))

    async def foresee(self, digest: str) -> Foreseen | None:
        """Return what each decision would make of a conflict's series, as it is now; None if it is not open."""
        is_open = (conflicts.c.Digest == digest) & conflicts.c.Resolution.is_(None)
        rows = await self.engine.read(select(conflicts).where(is_open))
        known = await self.engine.read(select_series(rows[0]["SeriesInstanceUID"])) if rows else []
        if not known:
            return None
        conflict, row = _conflict(rows[0]), cast("SeriesRow", merge.truthful(known[0]))
        union = {*await self.instances(conflict.SeriesInstanceUID), *(conflict.Report.SOPInstanceUIDs or ())}
        outcomes: dict[Decision, SeriesRecord] = {
            decision: as_record(merge.decided(decision, conflict.Report, row, len(union), datetime.now(UTC)))
            for decision in get_args(Decision)
        }
        return Foreseen(conflict, as_record(row), outcomes)

    async def changes(self, *, since: int, limit: int, subject: Subjects = "any") -> list[Change]:
        """Return up to `limit` changes behind the number `since`, in order. Later ones will have a higher number."""
        await self._number_changes()
        return [_change(row) for row in await self.engine.read(select_changes(since, limit, subject))]

    async def last_change(self) -> int:
        """Return the highest number that was given, also if that change was purged."""
        await self._number_changes()
        rows = await self.engine.read(select(counters.c.Value).where(counters.c.Name == "changes"))
        return int(rows[0]["Value"]) if rows else 0

    async def gateways(self) -> list[Gateway]:
        """Return what each gateway said last, in order of GatewayID."""
        now = datetime.now(UTC)
        rows = await self.engine.read(select(gateways).order_by(gateways.c.GatewayID))
        return [_gateway(row, now) for row in rows]

    async def ping(self) -> None:
        """Read something. Raises DatabaseUnavailable if the database cannot be read."""
        await self.engine.read(select(series.c.NumInstances).limit(1))

    async def _number_changes(self) -> None:
        """Give numbers to the revisions that were committed since the last time."""
        without = select(changes.c.Id).where(changes.c.Number.is_(None)).limit(1)
        while await self.engine.read(without):
            await self.engine.write(_number)


# --- storing a report -------------------------------------------------------------------------------------------


def _measure(record: SeriesRecord, known: Mapping[str, Any], created: bool) -> None:
    """Count what became of a report."""
    metrics.instances_stored.inc(record.NumInstances - known["NumInstances"])
    in_conflict = record.Conflicts > known["Conflicts"]
    changed = "revised" if record.Revision > known["Revision"] else "unchanged"
    metrics.reports_stored.labels("created" if created else "conflict" if in_conflict else changed).inc()


async def _store(
    connection: Connection, report: SeriesReport, terms: Terms
) -> tuple[SeriesRecord, SeriesRow, bool, list[Told]]:
    """Merge a report into its series' row; return the record, the row before, and whether that was made for it.

    Return also what is told of its study.

    1. Lock the row of the series. If there is none, the report makes it, unless another one is faster.
    2. A report that contradicts patient or study is kept aside (`_keep_conflict`), unless an operator has said that
       what this patient and study send belongs to the series.
    3. Any other is united with what is known (`_unite`).
    """
    now = datetime.now(UTC)
    while (known := await locked(connection, report.SeriesInstanceUID)) is None:
        new = merge.new_row(report, now)
        with suppress(_Faster):  # purged between two statements, a row is made anew
            changed, told = await _unite(connection, report, new, now, terms=terms)
            return as_record({**new, **changed}), new, True, told
    told = []
    if merge.contradicts(report, known) and not await _was_merged(connection, report):
        changed = await _keep_conflict(connection, report, known, now)
        await note_sent(connection, report, now, images=0, series=0)
    else:
        changed, told = await _unite(connection, report, known, now, terms=terms)
    return as_record({**known, **changed}), known, False, told


async def _unite(  # noqa: PLR0913 - a report, and how it came
    connection: Connection,
    report: SeriesReport,
    known: SeriesRow,
    now: datetime,
    *,
    terms: Terms,
    corrected: SeriesRow | None = None,
    decided: bool = False,
) -> tuple[Mapping[str, Any], list[Told]]:
    """Add what the report brings; return the columns that changed, and what is told of its study.

    The row is made if it is not known. Raises _Faster, and has done nothing, if that is there by now.

    A report that a gateway made for a person's word has that as its basis; it says no verdict if the word was taken
    back meanwhile. `corrected`: the row as it was before an operator corrected it; `decided`: one let the report in.
    """
    is_new = not known["Revision"]
    order = await orders.made_for(connection, report)
    word = None if order is None else orders.word_of(order)
    taken_back = order is not None and order["Problem"] in orders.TAKEN_BACKS and known["Verdict"] != "declared"
    if word is not None:
        report = report.model_copy(update={"Basis": word.basis})
    elif taken_back:
        report = merge.without_verdict(report, known)
    counted = len({*(report.SOPInstanceUIDs or ())}) if is_new else await revisions.count_images(connection, report)
    changed = merge.changes(report, known, merge.count(report, known, counted), now)
    if taken_back:
        changed = merge.still_incomplete(changed, known)
    again = None
    if is_new:
        again = await _begin(connection, report, known, changed)
    elif changed:
        await revise(connection, known, changed)
    await history.keep(connection, report, known, changed)
    row = with_changes(known, changed)
    if word is not None:
        await declarations.note_word(connection, row, word)
    told: list[Told] = []
    if changed or corrected or report.StudyCounts:
        obeys = order is not None and order["StudyInstanceUID"] is not None
        keep = partial(studies.keep, terms=terms, report=report, obeys=obeys, decided=decided, again=again)
        told = await keep(connection, corrected or known, row, now)
    if changed:
        for counted_row, figure in merge.completions(report, known, row):
            await count_verdict(connection, counted_row, figure)
    added = row["NumInstances"] - known["NumInstances"]
    await note_sent(connection, report, now, images=added, series=int(is_new and bool(changed)))
    return changed, told


class _Faster(Exception):
    """Another transaction has made the row that this one was to make."""


async def _begin(
    connection: Connection, report: SeriesReport, known: SeriesRow, changed: Mapping[str, Any]
) -> ComesAgain | None:
    """Make the row of a series; return what was purged of it, which its timeline says, too. Raises _Faster."""
    if not await revisions.begin(connection, known, changed):
        raise _Faster
    await revisions.add_images(connection, report)
    return await recall(connection, report.SeriesInstanceUID, changed["UpdatedAt"])


# --- gateways ---------------------------------------------------------------------------------------------------


async def _hear(
    connection: Connection, state: GatewayState, came_at: datetime, leaps: Leaps
) -> tuple[list[Order], list[dict[str, Any]], list[str]]:
    """Keep a gateway's state, forget gateways that are gone, and take what it says of its orders.

    Return what it is to do, the orders that have ended, and the studies that it does not name any more.
    """
    now = datetime.now(UTC)
    freed = await heartbeats.keep(connection, state, came_at, now)
    await heartbeats.forget_gone(connection, now, leaps)
    ended = await orders.acknowledge(connection, state, now)
    for order in ended:
        if order["Problem"] and order["Kind"] == "declare":
            await declarations.settle(connection, order, now)
    return await orders.waiting(connection, state.GatewayID, now), ended, freed


async def _order(connection: Connection, gateway_id: str, what: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give an order to a gateway; None if the gateway is not known. Raises TooManyOrders."""
    known = select(gateways.c.GatewayID).where(gateways.c.GatewayID == gateway_id)
    if (await connection.execute(known)).first() is None:
        return None
    given = await orders.give(connection, gateway_id, **what)
    if given is None:
        raise TooManyOrders(f"{orders.MAX_WAITING} orders wait at {gateway_id} already: does it run, in this version?")
    return given


def _gateway(row: Mapping[str, Any], now: datetime) -> Gateway:
    """Return a gateway's row as it is answered; fields that a newer server beside this one has kept are left out."""
    state = GatewayState.model_validate(row["State"], extra="ignore")
    return Gateway(SeenAt=row["At"], SilentS=round(max(0.0, (now - row["At"]).total_seconds()), 3), State=state)


# --- conflicts --------------------------------------------------------------------------------------------------


async def _keep_conflict(
    connection: Connection, report: SeriesReport, known: SeriesRow, now: datetime
) -> Mapping[str, Any]:
    """Keep a report aside, and let that be told, once; return the columns that changed."""
    if await insert(connection, conflicts, merge.conflict_row(report, now)):
        await tell(connection, known, ["conflict"], now)
    return await _count_conflicts(connection, report.SeriesInstanceUID)


def _digests(after: str | None, resolved: bool, series_instance_uid: str | None = None) -> Select[Any]:
    """Return the query for the names of conflicts, in order."""
    query = select(conflicts.c.Digest).order_by(conflicts.c.Digest)
    query = query.where(conflicts.c.Resolution.is_not(None) if resolved else conflicts.c.Resolution.is_(None))
    if series_instance_uid is not None:
        query = query.where(conflicts.c.SeriesInstanceUID == series_instance_uid)
    return query if after is None else query.where(conflicts.c.Digest > after)


def _conflict(row: Mapping[str, Any]) -> Conflict:
    """Return a row of `conflicts` as it is answered."""
    before = row["Before"] and {**row["Before"], "Attributes": fitting(row["Before"]["Attributes"])}
    return Conflict.model_validate({**row, "Report": _kept_report(row["Report"]), "Before": before})


def _kept_report(kept: Mapping[str, Any]) -> SeriesReport:
    """Return a report that was kept aside, within the bounds that an earlier version did not keep."""
    bounded = {"Attributes": fitting(kept["Attributes"]), "Undecoded": fitting_bytes(kept["Undecoded"])}
    return SeriesReport.model_validate({**kept, **bounded})


async def _count_conflicts(connection: Connection, series_instance_uid: str) -> Mapping[str, Any]:
    """Count the open conflicts of a series into its row; return the column."""
    unresolved = (conflicts.c.SeriesInstanceUID == series_instance_uid) & conflicts.c.Resolution.is_(None)
    count = (await connection.execute(select(func.count()).select_from(conflicts).where(unresolved))).scalar_one()
    await update(connection, series_instance_uid, {"Conflicts": count})
    return {"Conflicts": count}


async def _was_merged(connection: Connection, report: SeriesReport) -> bool:
    """Return whether an operator has said that what this patient and study send belongs to the series."""
    of_series = conflicts.c.SeriesInstanceUID == report.SeriesInstanceUID
    merged = select(conflicts.c.Report, conflicts.c.Before).where(of_series & conflicts.c.Resolution.in_(MERGED))
    rows = (await connection.execute(merged)).mappings()
    identities = [identity for row in rows for identity in (row["Report"], row["Before"]) if identity]
    return any(merge.same_identity(report, identity) for identity in identities)


async def _resolve(  # noqa: PLR0913 - a decision, and how it came
    connection: Connection, digest: str, decision: Decision, *, by: str, now: datetime, terms: Terms
) -> tuple[SeriesRecord | None, list[Told]]:
    """Settle an open conflict; return the record as it is then, None if there is no such open conflict.

    Return also what is told of its study.

    1. The conflict takes the decision, and with `correct` what that replaces; if it has one already, nothing is done.
    2. `correct` makes a revision with the patient and study of the report.
    3. `merge` and `correct` unite the report with the row.
    4. The row counts its open conflicts anew, and the timeline says what was decided.
    """
    found = (await connection.execute(select(conflicts).where(conflicts.c.Digest == digest))).mappings().one_or_none()
    known = await locked(connection, found["SeriesInstanceUID"]) if found is not None else None
    if found is None or known is None:  # or it was settled, and purged in this moment
        return None, []
    report = _kept_report(found["Report"])
    resolution: dict[str, Any] = {"Resolution": decision, "ResolvedAt": now, "ResolvedBy": by}
    if decision == "correct":
        resolution["Before"] = {column: value for column, value in known.items() if column in IDENTITY}
    still_open = (conflicts.c.Digest == digest) & conflicts.c.Resolution.is_(None)
    resolved = await connection.execute(conflicts.update().where(still_open).values(resolution))
    if resolved.rowcount != 1:  # by another operator, or by a try of ours whose answer was lost
        return as_record(known) if found["ResolvedAt"] == now else None, []
    told: list[Told] = []
    before = known
    if decision == "correct":
        corrected = merge.corrected(report, known, now)
        await revise(connection, known, corrected)
        known = with_changes(known, corrected)
    if decision in MERGED:
        changed, told = await _unite(connection, report, known, now, terms=terms, corrected=before, decided=True)
        known = with_changes(known, changed)
    counted = await _count_conflicts(connection, report.SeriesInstanceUID)
    event = {"At": now, "GatewayID": None, "Revision": known["Revision"], "Event": "conflict.resolved"}
    details = {"Decision": decision, "Digest": digest}
    await history.add(connection, report.SeriesInstanceUID, [event | {"Details": details}])
    return as_record({**known, **counted}), told


# --- the order of changes ---------------------------------------------------------------------------------------


async def _number(connection: Connection) -> None:
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


def select_changes(since: int, limit: int, subject: Subjects) -> Select[Any]:
    """Return the query for the changes behind a number, in order."""
    query = select(changes).where(changes.c.Number > since).order_by(changes.c.Number).limit(limit)
    return query if subject == "any" else query.where(IS_OF_STUDY if subject == "study" else not_(IS_OF_STUDY))


def _change(row: Mapping[str, Any]) -> Change:
    """Return a row of `changes` as it is told."""
    of_series = {"SeriesInstanceUID": None} if row["Subject"] == "study" else {}
    told = {"Kinds": (row["Kinds"] or "").split(), "Missing": merge.missing(row)} | of_series
    return Change.model_validate({**row, **told})
