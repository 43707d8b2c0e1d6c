"""The row of a study in a transaction: kept with each change of a series, looked at when it is due, told to others.

A transaction locks rows in this order: a series, its study (of two studies the lower UID first), then what many want:
what was learnt of a source, and the figures of verdicts. Who looks at a study without changing a series holds one
series all the same: a change names one, and to lock that later would be another order.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import structlog
from sqlalchemy import Select, bindparam, delete, func, select, update

from common import metrics
from common.required import Required, missing_of, required_of
from models import FINAL_VERDICTS, CountsOfStudy, SeriesReport
from storage import ahead, history, merge, orders, study_learning, study_rules, study_silence
from storage.answers import StudyRecord
from storage.connection import Connection
from storage.engine import insert
from storage.gaps import gaps
from storage.heartbeats import SPEAKS_WITHIN, clock_of
from storage.leaps import Leaps
from storage.revisions import TELL, figures_of
from storage.rows import SeriesRow, StudyRow, with_changes
from storage.schema import gateways, instances, purged, series, studies, study_completions
from storage.study_holders import Reporter, held
from storage.study_learning import Learnt
from storage.study_rules import Decision, Evidence

MAX_FIGURES = 5000  # rows of how verdicts have fared; sources beyond that are counted under an empty name
PUT_OFF_FOR = timedelta(hours=1)  # how long a study is left alone that could not be decided
MAX_NUMBERED = 20_000  # images of a series whose numbers are looked at
MAX_DESCRIPTIONS = 10_000  # different descriptions of a study's series that are looked at
LARGEST = 2**31 - 1  # that `changes` holds: reports without UIDs may claim more images than there are
NOBODY = Reporter(None, None)
OF_STUDY = ("PatientID", "PatientName", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber", "Source")
REFOLDED = 100  # series of a study that are read to know anew whose it is
# Made once, as those of revisions.py.
_BY_KEY = studies.c.StudyInstanceUID == bindparam("key")
LOCKED = select(studies).where(_BY_KEY).with_for_update()
FREE = select(studies).where(_BY_KEY).with_for_update(skip_locked=True)
UPDATE = update(studies).where(_BY_KEY)
PURGED = select(func.count(), func.coalesce(func.sum(purged.c.NumInstances), 0)).where(
    purged.c.StudyInstanceUID == bindparam("key")
)

log = structlog.get_logger()


class Terms(NamedTuple):
    """What a site has set for its studies."""

    max_open: timedelta = timedelta(days=1)
    required: tuple[Required, ...] = ()
    leaps: Leaps | None = None
    """What the server's process knows of its clock."""


class ComesAgain(NamedTuple):
    """What was purged of a series that comes again."""

    study_instance_uid: str | None
    """None: a version before 0.3 has purged it."""
    images: int

    def is_of(self, row: StudyRow) -> bool:
        """Return whether a study that stayed counts it as purged; one that is made anew has counted without it."""
        return bool(row["NumSeries"] and row["PurgedSeries"]) and self.study_instance_uid == row["StudyInstanceUID"]


class Told(NamedTuple):
    """A change of a study that others are told of."""

    study_instance_uid: str
    revision: int
    verdict: str | None
    policy: str | None
    contradicted: str | None
    """The verdict that images contradicted, if they did."""


class _Change(NamedTuple):
    """What changes of a study."""

    row: StudyRow
    """The row as it was."""
    columns: dict[str, Any]
    series_instance_uid: str
    """One of its series, which is locked: what is told names it."""
    learnt: Learnt = Learnt()

    @property
    def after(self) -> StudyRow:
        """Return the row as it will be."""
        return with_changes(self.row, self.columns)

    def with_columns(self, columns: Mapping[str, Any]) -> "_Change":
        """Return the change with more columns."""
        return self._replace(columns={**self.columns, **columns})


def measure(told: Sequence[Told]) -> None:
    """Count and log what is told, once it is committed."""
    for one in told:
        if one.verdict is not None:
            metrics.studies_told.labels(one.verdict).inc()
        if one.contradicted is not None:
            metrics.study_false_completions.labels(one.contradicted).inc()
        said = {"verdict": one.verdict, "policy": one.policy, "contradicted": one.contradicted}
        log.info("study.told", study_instance_uid=one.study_instance_uid, revision=one.revision, **said)


# --- a series has changed ---------------------------------------------------------------------------------------


async def keep(  # noqa: PLR0913 - a change, and how it came
    connection: Connection,
    before: SeriesRow,
    after: SeriesRow,
    now: datetime,
    *,
    terms: Terms | None = None,
    report: SeriesReport | None = None,
    obeys: bool = False,
    decided: bool = False,
    again: ComesAgain | None = None,
) -> list[Told]:
    """Let the study of a series follow its change; return what of that is told. The series' row is locked.

    Without `terms` nothing is decided now: the study is due at once. `obeys`: the report was made for a person's word
    about the study. `decided`: an operator has brought the images. `again`: the series was purged before.
    """
    moved = before["Revision"] > 0 and before["StudyInstanceUID"] != after["StudyInstanceUID"]
    uids = {after["StudyInstanceUID"]} | ({before["StudyInstanceUID"]} if moved else set())
    rows = {uid: await _made(connection, uid, now) for uid in sorted(uids)}
    if moved:
        await _leave(connection, rows[before["StudyInstanceUID"]], before, now)
    row = rows[after["StudyInstanceUID"]]
    is_new = moved or not before["Revision"]
    change = _Change(row, {}, after["SeriesInstanceUID"])
    if not row["NumSeries"] and not is_new:  # a server of an earlier version has stored the series
        change = await _recounted(connection, change, before)
    change = change.with_columns(study_rules.counted(change.after, None if is_new else before, after))
    if before["Revision"] and (moved or before["PatientID"] != after["PatientID"]):
        change = change.with_columns(await _refolded(connection, row["StudyInstanceUID"]))
    clock = await clock_of(connection, report.GatewayID if report else None)
    change = change.with_columns(study_rules.described(change.after, study_rules.as_told(after, report, clock, now)))
    known = before["NumInstances"]
    if again is not None and again.is_of(row):
        change = change.with_columns(study_rules.come_again(row, again.images))
        is_new, known = False, again.images  # it contradicts nothing that it comes again
    if is_new or after["NumInstances"] > known:
        change = _brought(change, after, now, report, clock.behind, obeys=obeys, counts=not decided)
    if merge.says_more(before, after) and after["Verdict"] in FINAL_VERDICTS:
        gap = await _find_gap(connection, after, now, report)
        change = change.with_columns(study_rules.with_gap(row, after["SeriesInstanceUID"], gap))
    if before != after:
        change = change.with_columns({"UpdatedAt": now})
    reporter = None
    if report is not None and report.StudyCounts is not None:
        change = _answered(change, report, _at(report.StudyCounts, clock.behind, now))
        reporter = Reporter(report.GatewayID, after["SeriesInstanceUID"])
    _, told = await _decided(connection, change, now, terms, reporter)
    return told


def _brought(  # noqa: PLR0913 - a report, and how it came
    change: _Change,
    series_row: SeriesRow,
    now: datetime,
    report: SeriesReport | None,
    behind: timedelta,
    *,
    obeys: bool,
    counts: bool,
) -> _Change:
    """Let a study follow images that have come: it is open again, and its silence has ended.

    `behind`: the clock of the gateway that says so.
    """
    row = change.row
    reopened = study_rules.reopened(row, now, obeys=obeys, counts=counts)
    change = change.with_columns(reopened)
    if report is None:
        return change
    if report.LastReceivedAt is None:
        change = change.with_columns({"LastReceivedAt": now})
    if not counts:
        return change
    came_at = report.FirstReceivedAt and ahead.by_our_clock(report.FirstReceivedAt, behind, now)
    silence_s = study_rules.silence_s(row, came_at)
    silence_s = silence_s if silence_s > study_silence.SHORTEST_S else 0.0  # most are: nothing is read for these
    learnt = change.learnt._replace(silence_s=silence_s, came=study_rules.kind_of_series(series_row), before=row)
    wrong = reopened.get("FalseCompletions", 0) > row["FalseCompletions"] and row["Policy"] == "verified"
    return change._replace(learnt=learnt._replace(trust=0) if wrong else learnt)


def _answered(change: _Change, report: SeriesReport, counts: CountsOfStudy) -> _Change:
    """Take into what changes what a report says that its PACS has, and had when it was first asked."""
    pacs, ahead = study_rules.asked_whom(report)
    change = _counted(change, counts, by=report.GatewayID, pacs=pacs, ahead=ahead)
    return _said(change, study_rules.had_less(change.after, study_rules.first_counts(report)))


def _at(counts: CountsOfStudy, behind: timedelta, now: datetime) -> CountsOfStudy:
    """Return what a PACS has, as it said it by the server's clock; by no clock it said so later than now."""
    return counts.model_copy(update={"At": ahead.by_our_clock(counts.At, behind, now)})


def _counted(
    change: _Change, counts: CountsOfStudy, *, by: str | None, pacs: str | None = None, ahead: bool = False
) -> _Change:
    """Take what a PACS has into what changes, and into what is learnt of it."""
    return _said(change, study_rules.taken(change.after, counts, by=by, pacs=pacs, ahead=ahead))


def _said(change: _Change, said: Mapping[str, Any]) -> _Change:
    """Take what is known now of a study's PACS; one that seemed to hold it, and does not, loses its trust."""
    wrong = study_rules.disappoints(change.after, said)
    learnt = change.learnt._replace(trust=0) if wrong else change.learnt
    return change._replace(learnt=learnt).with_columns(said)


async def _leave(connection: Connection, row: StudyRow, before: SeriesRow, now: datetime) -> None:
    """Take a series out of the study that it was in; without any, that goes. It is due: it may lose its verdict."""
    uid = row["StudyInstanceUID"]
    columns = study_rules.counted(row, before, None)
    if columns["NumSeries"] <= 0:
        await connection.execute(delete(studies).where(studies.c.StudyInstanceUID == uid))
        return
    columns |= study_rules.with_gap(row, before["SeriesInstanceUID"], None) | await _refolded(connection, uid)
    columns |= {"CountedSince": row["CountedSince"] and now}
    due = {} if study_rules.is_pending(row) else {"DueAt": now}
    await _update(connection, uid, columns | {"UpdatedAt": now} | due)


async def _refolded(connection: Connection, study_instance_uid: str) -> dict[str, Any]:
    """Return whose a study is and when it came, out of its series as they are now: one of them was corrected."""
    of_study = series.c.StudyInstanceUID == study_instance_uid
    some = select(series).where(of_study).order_by(series.c.SeriesInstanceUID).limit(REFOLDED)
    columns: dict[str, Any] = dict.fromkeys(OF_STUDY) | {"Kinds": []}
    for one in (await connection.execute(some)).mappings().all():
        columns |= study_rules.described(columns, cast("SeriesRow", one))
    times = select(func.min(series.c.FirstReceivedAt), func.max(series.c.LastReceivedAt)).where(of_study)
    first, last = (await connection.execute(times)).one()
    return columns | {"FirstReceivedAt": first, "LastReceivedAt": last}


async def _recounted(connection: Connection, change: _Change, changed: SeriesRow) -> _Change:
    """Return what a study that has no row yet comes to by all its series; the one that has changed as it was before."""
    of_study = series.c.StudyInstanceUID == change.row["StudyInstanceUID"]
    for one in (await connection.execute(select(series).where(of_study))).mappings().all():
        was = changed if one["SeriesInstanceUID"] == changed["SeriesInstanceUID"] else cast("SeriesRow", one)
        change = change.with_columns(study_rules.counted(change.after, None, was))
        change = change.with_columns(study_rules.described(change.after, was))
    return change


async def _find_gap(connection: Connection, row: SeriesRow, now: datetime, report: SeriesReport | None) -> str | None:
    """Return which InstanceNumbers a series seems to lack, and say so in its timeline."""
    if row["NumInstances"] > MAX_NUMBERED:
        return None
    is_whole = report is not None and len(set(report.SOPInstanceUIDs or ())) == row["NumInstances"]
    if report is not None and is_whole:
        gap = gaps(merge.instance_numbers(report))
    else:
        gap = await _stored_gap(connection, row)
    if gap is not None:
        event = {"At": now, "GatewayID": None, "Revision": row["Revision"], "Event": "series.gapped"}
        await history.add(connection, row["SeriesInstanceUID"], [event | {"Details": {"Numbers": gap}}])
    return gap


async def _stored_gap(connection: Connection, row: SeriesRow) -> str | None:
    """Return the same of all that is stored; it is read only if fewer numbers are there than from first to last."""
    numbers = instances.c.InstanceNumber
    of_series = (instances.c.SeriesInstanceUID == row["SeriesInstanceUID"]) & numbers.is_not(None)
    count = func.count(numbers.distinct())
    span = select(func.min(numbers), func.max(numbers), count).where(of_series)
    first, last, known = (await connection.execute(span)).one()
    if not known or last - first + 1 == known:
        return None
    return gaps((await connection.execute(select(numbers).where(of_series).limit(MAX_NUMBERED))).scalars())


# --- a study is looked at ---------------------------------------------------------------------------------------


async def look(  # noqa: PLR0913 - what is asked, and what was heard
    connection: Connection,
    study_instance_uid: str,
    now: datetime,
    terms: Terms,
    *,
    counts: CountsOfStudy | None = None,
    gateway_id: str | None = None,
    wait: bool = True,
) -> tuple[StudyRow | None, list[Told]]:
    """Decide about a study as it is now, and let its row say so; return the row, and what is told.

    `counts`: what its PACS has said to a gateway. Unless told to `wait`, a study that another transaction changes is
    left to that. None: it is not stored, or was left.
    """
    row, one = await hold(connection, study_instance_uid, wait=wait)
    if row is None or one is None:
        return None, []
    change = _Change(row, {}, one)
    if counts is not None:
        counts = _at(counts, (await clock_of(connection, gateway_id)).behind, now)
        change = _counted(change.with_columns({"UpdatedAt": now}), counts, by=gateway_id)
    return await _decided(connection, change, now, terms, NOBODY)


async def hold(
    connection: Connection, study_instance_uid: str, *, wait: bool = True
) -> tuple[StudyRow | None, str | None]:
    """Lock the row of a study, and one of its series against being purged; return both. None: there is no such."""
    for _ in range(3 if wait else 1):  # the series may be moved to another study while it is waited for
        of_study = select(series.c.SeriesInstanceUID).where(series.c.StudyInstanceUID == study_instance_uid)
        first = of_study.order_by(series.c.SeriesInstanceUID).limit(1)
        first = first.with_for_update(read=True, key_share=True, skip_locked=not wait)
        one = (await connection.execute(first)).scalar()
        if one is not None:
            return await _locked(connection, study_instance_uid, wait=wait), str(one)
    return None, None


async def _locked(connection: Connection, study_instance_uid: str, *, wait: bool = True) -> StudyRow | None:
    row = (await connection.execute(LOCKED if wait else FREE, {"key": study_instance_uid})).mappings().one_or_none()
    return cast("StudyRow", {**row}) if row else None


async def _made(connection: Connection, study_instance_uid: str, now: datetime) -> StudyRow:
    """Return the row of a study, locked; it is made if it is not there, and knows then what was purged of it."""
    while (row := await _locked(connection, study_instance_uid)) is None:
        before = (await connection.execute(PURGED, {"key": study_instance_uid})).one()
        made = study_rules.new_study(study_instance_uid, now, *before)
        if await insert(connection, studies, made):
            return made
    return row


async def _decided(
    connection: Connection, change: _Change, now: datetime, terms: Terms | None, reporter: Reporter | None
) -> tuple[StudyRow, list[Told]]:
    """Decide about a study that has changed so, write its row, and let it be told; return the row, and what is told.

    1. Without `terms` it is due, and nothing is decided.
    2. Who holds the study is looked at if it could get a verdict and a report has brought counts, so that this may be
       all; and for who looks at what is due (NOBODY). Else it is due.
    3. What many transactions want comes last: what is learnt, and the figures.
    """
    if terms is not None:
        change = change.with_columns(ahead.of_study(change.after, now, terms.max_open))
    row, learnt = change.row, change.learnt
    decision = Decision({} if study_rules.is_pending(row) else {"DueAt": now})
    if terms is not None:
        evidence = await _evidence(connection, change.after, now, terms)
        decision = _decide(change.after, evidence)
        if reporter is not None and (decision.look or reporter == NOBODY):
            evidence = await _looked(connection, change.after, evidence, terms, reporter)
            decision = _decide(change.after, evidence)
    after = change.with_columns(decision.columns).after
    if decision.ask:
        await _order_count(connection, after, change.series_instance_uid, now)
    if decision.trusted:
        learnt = learnt._replace(trust=1)
    if _ends(row, after):
        learnt = learnt._replace(ended=after)
    after, told = await write(connection, row, after, change.series_instance_uid, now)
    await study_learning.learn(connection, after, learnt, now)
    for one in told:
        await count_verdicts(connection, row, after, one)
    return after, told


def _decide(row: StudyRow, evidence: Evidence) -> Decision:
    """Decide by the rules. A bug in them costs the study its verdict, and not its series the report."""
    try:
        return study_rules.decide(row, evidence)
    except Exception as error:  # a second line of defence
        log.error("study.failed", study_instance_uid=row["StudyInstanceUID"], exc_info=error)
        return Decision({"DueAt": evidence.now + PUT_OFF_FOR})


def _ends(row: StudyRow, after: StudyRow) -> bool:
    """Return whether a study is told complete for the first time."""
    first = not after["FalseCompletions"] and row["Withdrawn"] is None
    return first and after["Verdict"] in FINAL_VERDICTS and row["Verdict"] not in FINAL_VERDICTS


async def _evidence(connection: Connection, row: StudyRow, now: datetime, terms: Terms) -> Evidence:
    """Return what is known beside a study's row, without a look at gateways and descriptions."""
    if row["Unsettled"]:  # nothing of that matters
        return Evidence(now, timedelta(), 0, terms.max_open, looked=False)
    learnt, study = await study_learning.known(connection, row), study_rules.learnt_of(row)
    silence, sure = (timedelta(seconds=of(learnt, study)) for of in (study_silence.timeout_s, study_silence.sure_s))
    trust = await study_learning.trust(connection, row) if study_rules.held_whole(row) else 0
    required = bool(await _required(connection, row, terms))
    return Evidence(now, silence, trust, terms.max_open, required, looked=False, sure=sure)


async def _looked(
    connection: Connection, row: StudyRow, evidence: Evidence, terms: Terms, reporter: Reporter
) -> Evidence:
    """Return the same with what is missing, and who holds the study."""
    missing: tuple[str, ...] = ()
    if evidence.required:
        wanted = await _required(connection, row, terms)
        description = series.c.Attributes["SeriesDescription", 0].as_string()
        of_study = series.c.StudyInstanceUID == row["StudyInstanceUID"]
        found = await connection.execute(select(description).where(of_study).distinct().limit(MAX_DESCRIPTIONS))
        missing = missing_of(wanted, [text for text in found.scalars() if text])
        if row["PurgedSeries"]:  # what was not missing before may have been purged: that is no evidence either way
            before = tuple(one for one in missing if one in row["MissingSeries"])
            evidence = evidence._replace(required=before == missing)
            missing = before
    holders = await held(connection, row["StudyInstanceUID"], evidence.now, reporter)
    since = terms.leaps.last_by(holders.clocks_set_at) if terms.leaps else None
    evidence = evidence._replace(held=holders.first, held_elsewhere=holders.elsewhere, since=since)
    return evidence._replace(missing=missing, looked=True)


async def _required(connection: Connection, row: StudyRow, terms: Terms) -> tuple[str, ...]:
    """Return which series are required of a study, by what its series are, and not by which of them came first."""
    if not terms.required:
        return ()
    described = series.c.Attributes["StudyDescription", 0].as_string()
    of_study = series.c.StudyInstanceUID == row["StudyInstanceUID"]
    kinds = select(series.c.Source, described).where(of_study).distinct().limit(MAX_DESCRIPTIONS)
    found = await connection.execute(kinds)
    return required_of(terms.required, [(source, study) for source, study in found])


async def _order_count(connection: Connection, row: StudyRow, series_instance_uid: str, now: datetime) -> None:
    """Have the gateway that asked the PACS last ask it again; if that is silent or stopped, whichever spoke last.

    That may not know this PACS: then it says so, and the study has lost nothing.
    """
    speaks = select(gateways.c.GatewayID, gateways.c.State["Stopped"].label("Stopped"))
    speaks = speaks.where(gateways.c.At >= now - SPEAKS_WITHIN).order_by(gateways.c.At.desc(), gateways.c.GatewayID)
    names = [one.GatewayID for one in await connection.execute(speaks) if not one.Stopped]
    if names:
        name = next((name for name in names if name == row["CountedBy"]), names[0])
        about: dict[str, Any] = {"SeriesInstanceUID": series_instance_uid, "StudyInstanceUID": row["StudyInstanceUID"]}
        about |= {"CallingAETitle": row["PACS"]}
        await orders.give(connection, name, "count", about, by="the server", because=None, now=now)


# --- what is written --------------------------------------------------------------------------------------------


async def write(
    connection: Connection, row: StudyRow, after: StudyRow, series_instance_uid: str, now: datetime
) -> tuple[StudyRow, list[Told]]:
    """Write what has changed of a study, and let it be told if that is news; return the row, and what is told."""
    kinds = study_rules.kinds(row, after)
    if kinds:
        after = with_changes(after, {"Revision": row["Revision"] + 1})
    before = cast("Mapping[str, Any]", row)
    changed = {name: value for name, value in after.items() if before[name] != value}
    if not changed.keys().isdisjoint(StudyRecord.model_fields):  # who reads it again sees something else
        changed["UpdatedAt"] = now
        after = with_changes(after, {"UpdatedAt": now})
    if changed:
        await _update(connection, row["StudyInstanceUID"], changed)
    if not kinds:
        return after, []
    expected = after["ExpectedInstances"]
    told = {
        "Subject": "study",
        "SeriesInstanceUID": series_instance_uid,
        **{name: after[name] for name in ("StudyInstanceUID", "Source", "Revision", "Verdict")},
        "NumInstances": min(after["NumInstances"], LARGEST),
        "ExpectedInstances": expected and min(expected, LARGEST),
        "NumSeries": after["NumSeries"],
        "Modality": "\\".join(sorted(filter(None, after["Modalities"]))) or None,
        "Kinds": " ".join(kinds),
        "At": now,
    }
    await connection.execute(TELL, told)
    details = {name: after[name] for name in ("Verdict", "Policy", "Basis", "Withdrawn")}
    event = {"At": now, "GatewayID": None, "Revision": after["Revision"], "Event": "study.told", "Details": details}
    await history.add(connection, series_instance_uid, [event])
    contradicted = (row["Verdict"] or row["Withdrawn"]) if "contradicted" in kinds else None
    return after, [Told(row["StudyInstanceUID"], after["Revision"], after["Verdict"], after["Policy"], contradicted)]


async def _update(connection: Connection, study_instance_uid: str, changed: Mapping[str, Any]) -> None:
    await connection.execute(UPDATE, {"key": study_instance_uid, **changed})


async def count_verdicts(connection: Connection, row: StudyRow, after: StudyRow, told: Told) -> None:
    """Count a verdict that is told, and one that images have contradicted, in the figures."""
    counted = []
    if told.contradicted in FINAL_VERDICTS:
        counted.append((row["Policy"] or "", told.contradicted, "False"))
    if after["Verdict"] is not None and (told.contradicted or after["Verdict"] != row["Verdict"]):
        counted.append((after["Policy"] or "", after["Verdict"], "Studies"))
    if counted:
        source = await figures_of(connection, study_completions, after["Source"] or "", MAX_FIGURES)
        for policy, verdict, figure in counted:
            values = {"Source": source, "Policy": policy, "Verdict": verdict, "Studies": 0, "False": 0} | {figure: 1}
            more = {figure: study_completions.c[figure] + 1}
            await insert(connection, study_completions, values, or_update=more)


# --- series are purged, gateways let go -------------------------------------------------------------------------


async def forget(connection: Connection, gone: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Take series that are purged out of their studies; a study whose last series goes, goes too.

    What a study says stays: nobody has found that it was wrong. What its PACS has still of these is not missing. One
    without a verdict is due: it may have waited for a series that goes.
    """
    for uid in sorted({str(one["StudyInstanceUID"]) for one in gone}):
        row = await _locked(connection, uid)
        if row is None:
            continue
        for one in (cast("SeriesRow", each) for each in gone if each["StudyInstanceUID"] == uid):
            row = with_changes(row, study_rules.counted(row, one, None) | study_rules.purged(row, one))
            row = with_changes(row, study_rules.with_gap(row, one["SeriesInstanceUID"], None))
        if row["Verdict"] is None and not study_rules.is_pending(row):
            row = with_changes(row, {"DueAt": now})
        this = studies.c.StudyInstanceUID == uid
        if row["NumSeries"] <= 0:
            await connection.execute(delete(studies).where(this))
        else:
            await connection.execute(update(studies).where(this).values(row))


def select_due(now: datetime, limit: int, max_open: timedelta) -> Select[Any]:
    """Return the query for the studies that are due, the longest due first."""
    order, due = (studies.c.DueAt, studies.c.StudyInstanceUID), ahead.is_due(studies.c.DueAt, now, max_open)
    return select(studies.c.StudyInstanceUID).where(due).order_by(*order).limit(limit)


async def make_due(connection: Connection, study_instance_uids: Sequence[str], now: datetime) -> None:
    """Let studies be looked at soon; those that others change now are left to them."""
    these = studies.c.StudyInstanceUID.in_(study_instance_uids) & (studies.c.DueAt > now)
    these &= studies.c.Policy.is_distinct_from("declared")  # of those it says for how long gateways are waited for
    free = select(studies.c.StudyInstanceUID).where(these).order_by(studies.c.StudyInstanceUID)
    uids = list((await connection.execute(free.with_for_update(skip_locked=True))).scalars())
    if uids:
        await connection.execute(update(studies).where(studies.c.StudyInstanceUID.in_(uids)).values(DueAt=now))


async def put_off(connection: Connection, study_instance_uid: str, now: datetime) -> None:
    """Let a study not be looked at for PUT_OFF_FOR, unless something comes to it."""
    await _update(connection, study_instance_uid, {"DueAt": now + PUT_OFF_FOR})
