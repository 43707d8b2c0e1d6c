"""Decide if a study is complete, of its row and what is known beside it. Pure: rows in, rows out; studies.py writes.

A study is counted by what each of its series is before and after a change (`counted`), learns what its PACS has
(`taken`), loses its verdict when more comes (`reopened`), and gets one by `decide`.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from common.study_kinds import STORED, group_of, kind_of
from models import FINAL_VERDICTS, ChangeKind, CountsOfStudy, SeriesReport, SeriesVerdict
from storage.ahead import by_our_clock
from storage.heartbeats import Clock
from storage.merge import BASIS_LENGTH, Columns, Word, missing
from storage.rows import SeriesRow, StudyRow, with_changes
from storage.study_silence import MAX_KINDS, Study

TRUSTED_AFTER = 10  # studies that a PACS held whole from the start: then it is believed at once
MAX_TRUST = 1000
COUNT_WAIT = timedelta(seconds=30)  # how long the PACS's answer is waited for once the silence has passed
DECLARED_WITHIN = timedelta(seconds=30)  # how long gateways are waited for that have series of a declared study open
HELD_AGAIN = (timedelta(seconds=30), timedelta(minutes=10))  # how soon, how late is looked again if a gateway holds it
MORE_AGAIN = (timedelta(seconds=60), timedelta(hours=1))  # the same if its PACS has more
MAX_MODALITIES = 50  # modalities that are counted by themselves; further ones stand together under ""
MAX_GAPS = 20  # series whose gaps are kept
MAX_SERIES_TOLD = 3  # series whose gaps a basis names
DESCRIPTION_LENGTH = 1024  # characters
STRENGTH = ("verified", "declared", "expected", "idle", "capped", "drained")
"""The verdicts, from the strongest to the weakest."""
STANDS = ("verified", "declared")  # verdicts to which a person's word adds nothing


class Evidence(NamedTuple):
    """What is known beside the row."""

    now: datetime
    silence: timedelta
    """How long its source's studies are silent at most, as learnt."""
    trust: int
    """How many studies like it its PACS has held whole from the start, in a row."""
    max_open: timedelta
    required: bool = False
    """Some series are required of such a study."""
    missing: tuple[str, ...] = ()
    """Which of them are not here."""
    looked: bool = True
    """Somebody has looked what is missing and who holds the study."""
    held: str | None = None
    """Which gateway holds images of it, or may, in words."""
    held_elsewhere: str | None = None
    """The same without the gateway whose report has just come: what that holds, its PACS's count contains."""
    sure: timedelta = timedelta()
    """How long a study is silent until a PACS is believed that may itself still receive it: `silence` at least."""
    since: datetime | None = None
    """When a clock was set last by which these silences would be too long (leaps.py)."""


class Decision(NamedTuple):
    """What a study's row says from now on."""

    columns: Columns
    ask: bool = False
    """The PACS is to be asked again what it has."""
    look: bool = False
    """There may be a verdict, but nobody has looked yet who holds the study."""
    trusted: bool = False
    """Its PACS had more than had come when it was first asked, and the same in the end."""


# --- what its series come to ------------------------------------------------------------------------------------


def new_study(study_instance_uid: str, now: datetime, purged_series: int = 0, purged_images: int = 0) -> StudyRow:
    """Return the row of a study that was not known, without any series; so much of it was purged before."""
    empty: Columns = dict.fromkeys(StudyRow.__annotations__)
    numbers = ("NumSeries", "NumInstances", "Unsettled", "Incomplete", "Contradicted", "Revision", "FalseCompletions")
    own = {"StudyInstanceUID": study_instance_uid, "Modalities": {}, "Verdicts": {}, "MissingSeries": []}
    others = {"CountGrew": False, "Kinds": [], "Gaps": {}, "UpdatedAt": now, "OpenSince": now}
    others |= {"PurgedSeries": purged_series, "PurgedInstances": purged_images}
    return cast("StudyRow", empty | dict.fromkeys(numbers, 0) | own | others)


def counted(row: Mapping[str, Any], before: SeriesRow | None, after: SeriesRow | None) -> Columns:
    """Return the counts of a study of which a series has changed; None: it was not there, or has gone."""
    columns: Columns = {name: dict(row[name]) for name in ("Modalities", "Verdicts")}
    numbers = ("NumSeries", "NumInstances", "Unsettled", "Incomplete", "Contradicted")
    columns |= {name: row[name] for name in numbers}
    for series, by in ((before, -1), (after, 1)):
        if series is not None:
            for name, value in _of_series(series).items():
                columns[name] += by * value
            _count(columns["Modalities"], series["Modality"] or "", by, MAX_MODALITIES)
            _count(columns["Verdicts"], series["Verdict"] or "", by, len(STRENGTH) + 1)
    return columns


def _of_series(series: SeriesRow) -> dict[str, int]:
    return {
        "NumSeries": 1,
        "NumInstances": series["NumInstances"],
        "Unsettled": series["Verdict"] not in FINAL_VERDICTS,
        "Incomplete": missing(series) > 0,
        "Contradicted": series["FalseCompletions"] > 0,
    }


def _count(counts: dict[str, int], name: str, by: int, most: int) -> None:
    """Count one name up or down; the names that there is no room for are counted together."""
    if name not in counts and (by < 0 or len(counts) >= most):
        name = ""
    counts[name] = counts.get(name, 0) + by
    if not counts[name]:
        del counts[name]


def described(row: Mapping[str, Any], series: SeriesRow) -> Columns:
    """Return what a series tells of its study that was not known: who, when, what, and the kind of the series."""
    attributes = series["Attributes"]
    told = {name: cast("dict[str, Any]", series)[name] for name in ("PatientID", "PatientName", "StudyDate", "Source")}
    told["AccessionNumber"] = series["AccessionNumber"]
    told["StudyTime"] = _first(attributes, "StudyTime")[:64] or None
    told["StudyDescription"] = _first(attributes, "StudyDescription")[:DESCRIPTION_LENGTH] or None
    columns: Columns = {name: row.get(name) or value for name, value in told.items()}
    kind = kind_of_series(series)
    kinds = row["Kinds"]
    columns["Kinds"] = kinds if kind in kinds or len(kinds) >= MAX_KINDS else [*kinds, kind]
    times = (("FirstReceivedAt", min), ("LastReceivedAt", max))
    for name, first in times:
        both = [at for at in (row.get(name), cast("dict[str, Any]", series)[name]) if at is not None]
        columns[name] = first(both, default=None)
    return columns


def as_told(series: SeriesRow, report: SeriesReport | None, clock: Clock, now: datetime) -> SeriesRow:
    """Return a series as a report has changed it, with the times of that alone, of a gateway with this clock.

    Without a report nothing has come. Its last image may have come until the clock was set: what it says of before that
    may be wrong by as much.
    """
    said = {name: report and getattr(report, name) for name in ("FirstReceivedAt", "LastReceivedAt")}
    times = {name: at and by_our_clock(at, clock.behind, now) for name, at in said.items()}
    if times["LastReceivedAt"] and clock.set_at:
        times["LastReceivedAt"] = max(times["LastReceivedAt"], min(clock.set_at, now))
    return with_changes(series, times)


def kind_of_series(series: SeriesRow) -> str:
    """Return the kind of a series, for what is learnt about silences."""
    return kind_of(series["Modality"], _first(series["Attributes"], "SeriesDescription"))


def _first(attributes: Mapping[str, Any], keyword: str) -> str:
    return str(next(iter(attributes.get(keyword, ())), ""))


def with_gap(row: StudyRow, series_instance_uid: str, gap: str | None) -> Columns:
    """Return what a study tells of the gaps of its series; of too many the first stay."""
    others = {uid: text for uid, text in row["Gaps"].items() if uid != series_instance_uid}
    return {"Gaps": others if gap is None or len(others) >= MAX_GAPS else {**others, series_instance_uid: gap}}


def learnt_of(row: StudyRow) -> Study:
    """Return what of a study says what may still come."""
    received = row["FirstReceivedAt"] or row["OpenSince"]
    return Study(tuple(row["Kinds"]), group_of(row["StudyDescription"], row["StudyDate"], received))


def trusted_for(row: StudyRow) -> tuple[str | None, bool]:
    """Return which PACS is trusted or not with such a study, and if that is of an earlier day.

    A PACS that holds those whole may all the same receive those of today while it forwards them.
    """
    return row["PACS"], learnt_of(row).group == STORED


def silence_s(row: StudyRow, came_at: datetime | None) -> float:
    """Return how long a study has been silent before something came to it; 0 if it was not."""
    last = row["LastReceivedAt"]
    return max(0.0, (came_at - last).total_seconds()) if row["NumSeries"] and came_at and last else 0.0


# --- what its PACS has ------------------------------------------------------------------------------------------


def taken(row: StudyRow, counts: CountsOfStudy, *, by: str | None, pacs: str | None, ahead: bool = False) -> Columns:
    """Return what a study's row knows of its PACS once that has said what it has; nothing if it said more since.

    Of several PACS the one counts that has more of the study, and nothing that another one has said is of it. What was
    purged here and is there still is nothing that is missing.
    `ahead`: the PACS had more of the series that was asked about when its first image came.
    """
    if row["CountedAt"] is not None and counts.At < row["CountedAt"]:
        return {}
    said, before = _still_here(row, counts), (row["ExpectedSeries"], row["ExpectedInstances"])
    had = (row["NumSeries"], row["NumInstances"])
    is_another = None not in (pacs, row["PACS"]) and pacs != row["PACS"]
    if is_another and (said[0] < (before[0] or 0) or said[1] < (before[1] or 0)):
        return {}
    first = is_another or row["CountedAhead"] is None
    grew = not first and (said[0] > (before[0] or 0) or said[1] > (before[1] or 0))
    return {
        "ExpectedSeries": said[0],
        "ExpectedInstances": said[1],
        "CountedAt": counts.At,
        "CountedSince": row["CountedSince"] if said == before and not is_another else counts.At,
        "CountedAhead": (ahead or said[0] > had[0] or said[1] > had[1]) if first else row["CountedAhead"],
        "CountGrew": (row["CountGrew"] and not is_another) or grew,
        "CountedBy": by or row["CountedBy"],
        "PACS": pacs or row["PACS"],
    }


def _still_here(row: StudyRow, counts: CountsOfStudy) -> tuple[int, int]:
    """Return what its PACS has of a study, in series and images, without what was purged here."""
    return max(0, counts.Series - row["PurgedSeries"]), max(0, counts.Instances - row["PurgedInstances"])


def purged(row: StudyRow, series: SeriesRow) -> Columns:
    """Return the columns of a study of which a series is purged: what its PACS has of that is no longer compared."""
    images = series["NumInstances"]
    more = {"PurgedSeries": row["PurgedSeries"] + 1, "PurgedInstances": row["PurgedInstances"] + images}
    return more | _expected(row, -1, -images)


def come_again(row: StudyRow, images: int) -> Columns:
    """Return the columns of a study of which a series comes again that was purged with so many images."""
    less = {"PurgedSeries": row["PurgedSeries"] - 1, "PurgedInstances": max(0, row["PurgedInstances"] - images)}
    return less | _expected(row, 1, row["PurgedInstances"] - less["PurgedInstances"])


def _expected(row: StudyRow, series: int, images: int) -> Columns:
    by = (("ExpectedSeries", row["ExpectedSeries"], series), ("ExpectedInstances", row["ExpectedInstances"], images))
    return {name: max(0, known + more) for name, known, more in by if known is not None}


def disappoints(row: StudyRow, changed: Mapping[str, Any]) -> bool:
    """Return whether the count of a PACS has grown that seemed to hold the study whole from the start."""
    return bool(row["CountedAhead"]) and bool(changed.get("CountGrew")) and not row["CountGrew"]


def asked_whom(report: SeriesReport) -> tuple[str | None, bool]:
    """Return which PACS a report says was asked, and if it had more of the series than had come when first asked."""
    answers = [event.Details for event in report.Timeline if event.Event == "pacs.answered"]
    pacs = next((str(one["PACS"]) for one in answers if one.get("PACS")), None)
    count, known = (answers[0].get("Count"), answers[0].get("Known")) if answers else (None, None)
    ahead = isinstance(count, int) and isinstance(known, int) and count > known
    return pacs, ahead


def had_less(row: StudyRow, first: CountsOfStudy | None) -> Columns:
    """Return what a study's row knows of its PACS once that has told what it had `first`, as a series began.

    If it had less than it said since, it has itself received the study meanwhile.
    """
    if first is None or row["ExpectedSeries"] is None or row["ExpectedInstances"] is None:
        return {}
    had = _still_here(row, first)
    less = had[0] < row["ExpectedSeries"] or had[1] < row["ExpectedInstances"]
    return {"CountGrew": True} if less else {}


def first_counts(report: SeriesReport) -> CountsOfStudy | None:
    """Return what the PACS said of the study when it was first asked about a series, so as its first image came."""
    for event in report.Timeline:
        said = [event.Details.get(name) for name in ("StudySeries", "StudyInstances")]
        if event.Event == "pacs.answered" and all(isinstance(one, int) and 0 <= one < 2**31 for one in said):
            return CountsOfStudy.model_validate({"Series": said[0], "Instances": said[1], "At": event.At})
    return None


def has_more(row: StudyRow) -> bool:
    """Return whether the PACS has more of a study than is known here."""
    series, images = row["ExpectedSeries"] or 0, row["ExpectedInstances"] or 0
    return series > row["NumSeries"] or images > row["NumInstances"]


def _has_the_same(row: StudyRow) -> bool:
    return (row["ExpectedSeries"], row["ExpectedInstances"]) == (row["NumSeries"], row["NumInstances"])


def _can_ask(row: StudyRow) -> bool:
    """Return whether it is known whom to ask by which gateway."""
    return row["CountedBy"] is not None and row["PACS"] is not None


# --- more has come ----------------------------------------------------------------------------------------------


def reopened(row: StudyRow, now: datetime, *, obeys: bool = False, counts: bool = True) -> Columns:
    """Return the columns that change as images come to a study.

    `obeys`: a gateway brings them for a person's word. `counts`: they came by themselves, not as an operator decided.

    1. It is to be declared once its gateways have reported: that stands, and what they bring is part of it.
    2. It is `capped`, which claims nothing: that stands.
    3. It has another verdict, or a person has withdrawn one: it has none now, and what it had was false.
    """
    if row["Policy"] == "declared" and (row["Verdict"] is None or obeys):  # 1
        return {}
    if row["Verdict"] == "capped" or (row["Verdict"] is None and row["Withdrawn"] is None):  # 2
        return {}
    was_final = (row["Verdict"] or row["Withdrawn"]) in FINAL_VERDICTS  # 3
    return {
        "Verdict": None,
        "Policy": None,
        "Withdrawn": None,
        "OpenSince": now,
        "FalseCompletions": row["FalseCompletions"] + (was_final and counts),
    }


# --- deciding ---------------------------------------------------------------------------------------------------


def decide(row: StudyRow, e: Evidence) -> Decision:
    """Decide what a study's row says now: the first case that applies.

    A verdict stands as long as nothing refutes it; a new one of cases 1, 4 and 5 needs that every series has a final
    verdict and no gateway holds any image of the study, which somebody has to have looked at.

    1. Its PACS has just as many series and images as are known: `verified`. If it held them from the start (it had more
       than had come when it was first asked, and has said the same since), it was asked a silence after the last image,
       or is trusted; if not, it was asked after `sure`.
    2. A person has said that it is complete, and the gateways that had series of it open have reported them or have had
       DECLARED_WITHIN for it: `declared`.
    3. A person has said that it is incomplete, or gateways are still waited for: no verdict. After "incomplete" case 1
       needs that its PACS has said so only since (`_is_news`); that is asked again for `max_open`.
    4. Series are required of it, all are here, and its PACS has no more than is known: `expected`.
    5. The silence of its source has passed, its PACS has no more, and no required series is missing: `idle`. A PACS
       that can be asked is, and has COUNT_WAIT to answer.
    6. It has been open for `max_open`: `capped`.
    7. Else it has no verdict.
    """
    settled = not row["Unsettled"]
    applies = {
        "verified": settled and _has_the_same(row) and _is_believed(row, e),
        "declared": row["Policy"] == "declared" and (e.held is None or _waited(row, e)),
        "expected": settled and e.required and not e.missing and not has_more(row),
        "idle": settled and not e.missing and not has_more(row) and e.now >= _idle_at(row, e),
    }
    kept_back = {"verified": e.held_elsewhere, "declared": None, "expected": e.held, "idle": e.held}
    spoken = row["Withdrawn"] is not None or row["Policy"] == "declared"
    policy: SeriesVerdict | None = None
    for name, holds in applies.items():
        if name in ("expected", "idle") and spoken:  # 3
            break
        if _stands(row, name) or (holds and e.looked and kept_back[name] is None):
            policy = cast("SeriesVerdict", name)
            break
    may_be = applies["verified"] if spoken else any(applies.values())
    look = policy is None and not e.looked and not is_pending(row) and may_be
    if policy is None and not spoken:
        is_capped = e.now >= row["OpenSince"] + e.max_open and not look
        policy = "capped" if is_capped or _stands(row, "capped") else None  # 6, 7
    return _decision(row, e, policy, look)


def is_pending(row: StudyRow) -> bool:
    """Return whether a person has said that it is complete, and gateways are waited for until DueAt."""
    return row["Policy"] == "declared" and row["Verdict"] is None


def _stands(row: StudyRow, policy: str) -> bool:
    """Return whether the row has this verdict, by whatever was told of it, and nothing refutes it."""
    decided_by = row["Verdict"] if row["Policy"] == "upgrade" else row["Policy"]
    if row["Verdict"] is None or decided_by != policy:
        return False
    if policy == "verified":
        return not row["Unsettled"] and _has_the_same(row)
    return policy in ("declared", "capped") or not (row["Unsettled"] or has_more(row))


def _decision(row: StudyRow, e: Evidence, policy: SeriesVerdict | None, look: bool) -> Decision:
    """Put a decision into the columns of the row."""
    told = _weaker(row, policy)
    pending = policy is None and is_pending(row)
    stands = policy is not None and row["Verdict"] == told and _stands(row, policy)
    withdrawn = row["Withdrawn"] if policy is None else None
    basis = row["Basis"] if stands or pending or withdrawn else _basis(row, e, policy, told)
    final = policy in FINAL_VERDICTS
    late = any(e.now >= at and not _asked_after(row, at) for at in (_quiet_at(row, e), _sure_at(row, e)))
    asked_long_ago = row["CountedAt"] is not None and e.now - row["CountedAt"] >= _between(row, e, MORE_AGAIN)
    again = (has_more(row) or withdrawn is not None) and asked_long_ago
    free = e.looked and e.held is None and not row["Unsettled"]
    given_up = withdrawn is not None and e.now >= row["OpenSince"] + e.max_open
    ask = free and policy not in STANDS and not (pending or given_up) and _can_ask(row) and (late or again)
    columns: Columns = {
        "Verdict": told,
        "Policy": row["Policy"] if stands or pending else policy,
        "Basis": basis,
        "MissingSeries": list(e.missing) if e.looked else row["MissingSeries"],
        "Withdrawn": withdrawn,
        "DueAt": row["DueAt"] if pending else _due(row, e, policy, look),
    }
    slow = policy == "verified" and not stands and _asked_late(row, e)
    return Decision(columns, ask, look, trusted=slow and held_whole(row) and final)


def _weaker(row: StudyRow, policy: SeriesVerdict | None) -> SeriesVerdict | None:
    """Return the verdict that is told: no stronger than the weakest of its series; a person's word is of them all."""
    if policy in (None, "declared", "capped"):
        return policy
    verdicts = {policy, *row["Verdicts"]} - {""}
    return cast("SeriesVerdict", max(verdicts, key=STRENGTH.index))


# --- when -------------------------------------------------------------------------------------------------------


def _last(row: StudyRow, e: Evidence) -> datetime:
    """Return since when it has been silent: a gateway's clock may be ahead, the server's may have been set forward."""
    last = row["LastReceivedAt"] or row["OpenSince"]
    return min(last if e.since is None else max(last, e.since), e.now)


def _quiet_at(row: StudyRow, e: Evidence) -> datetime:
    return _last(row, e) + e.silence


def _idle_at(row: StudyRow, e: Evidence) -> datetime:
    """Return when silence alone may decide."""
    return _quiet_at(row, e) + (COUNT_WAIT if _can_ask(row) and not _asked_late(row, e) else timedelta())


def _asked_late(row: StudyRow, e: Evidence) -> bool:
    """Return whether the PACS was asked, the silence of its source after the last image."""
    return _asked_after(row, _quiet_at(row, e))


def _sure_at(row: StudyRow, e: Evidence) -> datetime:
    """Return when the PACS has to be asked to be believed."""
    return _last(row, e) + (e.silence if held_whole(row) else max(e.silence, e.sure))


def _asked_surely(row: StudyRow, e: Evidence) -> bool:
    return _asked_after(row, _sure_at(row, e))


def _is_believed(row: StudyRow, e: Evidence) -> bool:
    """Return whether what its PACS says may verify it: that stands for long enough, and no person has denied it."""
    return (row["Withdrawn"] is None or _is_news(row)) and (_asked_surely(row, e) or _is_trusted(row, e))


def _is_news(row: StudyRow) -> bool:
    """Return whether its PACS says something else since a person has said that the study is incomplete."""
    return row["CountedSince"] is not None and row["CountedSince"] > row["OpenSince"]


def _asked_after(row: StudyRow, at: datetime) -> bool:
    return row["CountedAt"] is not None and row["CountedAt"] >= at


def _asks_at(row: StudyRow, e: Evidence) -> datetime | None:
    """Return when the PACS is asked next, if nothing comes."""
    later = (at for at in (_quiet_at(row, e), _sure_at(row, e)) if at > e.now and not _asked_after(row, at))
    return min(later, default=None) if _can_ask(row) else None


def held_whole(row: StudyRow) -> bool:
    """Return whether its PACS seems to have had all of it from the start: else it may itself still receive it."""
    return bool(row["CountedAhead"]) and not row["CountGrew"]


def _is_trusted(row: StudyRow, e: Evidence) -> bool:
    return e.trust >= TRUSTED_AFTER and held_whole(row)


def _waited(row: StudyRow, e: Evidence) -> bool:
    if row["DueAt"] is None:
        return False
    return e.now >= (row["DueAt"] if e.since is None else max(row["DueAt"], e.since + DECLARED_WITHIN))


def _between(row: StudyRow, e: Evidence, bounds: tuple[timedelta, timedelta]) -> timedelta:
    """Return how long until something is looked at again: the longer, the longer the study has been silent."""
    return min(max((e.now - _last(row, e)) / 4, bounds[0]), bounds[1])


def _due(row: StudyRow, e: Evidence, policy: SeriesVerdict | None, look: bool) -> datetime | None:
    """Return when the study is looked at next; None: not before something comes."""
    asks_later = _can_ask(row) and not _asked_late(row, e) and _quiet_at(row, e) > e.now
    if policy in FINAL_VERDICTS:
        return _asks_at(row, e) if policy not in STANDS else None
    if look:
        return e.now
    if row["Withdrawn"]:
        again_at = e.now + _between(row, e, MORE_AGAIN)
        asks = _can_ask(row) and not row["Unsettled"] and again_at < row["OpenSince"] + e.max_open
        return again_at if asks else None
    cap_at = None if policy == "capped" else row["OpenSince"] + e.max_open
    if row["Unsettled"] or e.missing:
        at = None
    elif e.held is not None:
        at = e.now + _between(row, e, HELD_AGAIN)
    elif has_more(row):
        at = None if policy == "capped" else max(_quiet_at(row, e), e.now + _between(row, e, MORE_AGAIN))
    else:
        at = _quiet_at(row, e) if asks_later else _idle_at(row, e)
    return min((one for one in (at, cap_at) if one is not None), default=None)


# --- in words ---------------------------------------------------------------------------------------------------


def _basis(row: StudyRow, e: Evidence, policy: SeriesVerdict | None, told: SeriesVerdict | None) -> str | None:
    """Say what a verdict, or its absence, rests on, and what speaks against it."""
    why = {
        "verified": _counted_words(row) + ("" if _asked_late(row, e) else ", and has held its last studies whole"),
        "declared": row["Basis"] or "",
        "expected": "all required series are here",
        "idle": f"no image for {e.silence.total_seconds():.0f} s",
        "capped": f"open for {e.max_open.total_seconds():.0f} s: {_why_not(row, e)}",
    }.get(policy or "", _why_not(row, e))
    parts = [why]
    if told != policy:
        parts.append(f"a series is {told} only")
    if row["Gaps"]:
        some = [f"{text} ({uid})" for uid, text in list(row["Gaps"].items())[:MAX_SERIES_TOLD]]
        parts.append(f"images {'; '.join(some)}")
    return "; ".join(parts)[:BASIS_LENGTH]


def _counted_words(row: StudyRow) -> str:
    return f"its PACS has {row['ExpectedSeries']} series with {row['ExpectedInstances']} images"


def _why_not(row: StudyRow, e: Evidence) -> str:
    """Say what a verdict waits for."""
    if row["Unsettled"]:
        return f"{row['Unsettled']} of {row['NumSeries']} series are still open, or were drained"
    if e.held is not None:
        return e.held
    if e.missing:
        return f"required and not here: {', '.join(e.missing)}"
    if has_more(row):
        return f"{_counted_words(row)}, known are {row['NumSeries']} with {row['NumInstances']}"
    return f"{e.silence.total_seconds():.0f} s without an image are waited for"


# --- what a person says, and what others are told of ------------------------------------------------------------


def declared(row: StudyRow, word: Word, now: datetime, *, waits: bool) -> Columns:
    """Return the columns that a person's word changes. Empty if it is no news, as "complete" is of a verified study.

    `waits`: gateways have series of it open, and are told to close them: it is declared once they have.
    """
    if word.declared == "incomplete":
        if row["Withdrawn"]:
            return {}
        withdrawn = {"Verdict": None, "Policy": None, "Withdrawn": row["Verdict"] or "part"}
        due = now if _can_ask(row) else None
        return withdrawn | {"Basis": word.basis, "UpdatedAt": now, "OpenSince": now, "DueAt": due}
    if row["Verdict"] in STANDS or (row["Policy"] == "declared" and waits):
        return {}
    verdict, due = (None, now + DECLARED_WITHIN) if waits else ("declared", None)
    told = {"Verdict": verdict, "Policy": "declared", "Basis": word.basis, "Withdrawn": None, "DueAt": due}
    return told | {"UpdatedAt": now}


def kinds(before: StudyRow, after: StudyRow) -> list[ChangeKind]:
    """Return what a change of a study is to those who are told of it; none if nobody is."""
    contradicted = after["FalseCompletions"] > before["FalseCompletions"]
    verdicts, withdrawn = (before["Verdict"], after["Verdict"]), (before["Withdrawn"], after["Withdrawn"])
    if not contradicted and verdicts[0] == verdicts[1] and withdrawn[0] == withdrawn[1]:
        return []
    told: list[ChangeKind] = ["revised"]
    if after["Verdict"] == "verified" and (contradicted or verdicts[0] != "verified"):
        told.append("verified")
    if (after["Verdict"] == "declared" and verdicts[0] != "declared") or (withdrawn[1] and not withdrawn[0]):
        told.append("declared")
    if contradicted:
        told.append("contradicted")
    return told
