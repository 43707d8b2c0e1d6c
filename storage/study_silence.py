"""Learn how long a study of a source is silent before something more comes to it, and so how long to wait. Pure.

1. A silence of a study that a further series ended is remembered for the next MEMORY studies: how long it was, of what
   kind that series was, if the study had one of that kind already, and the study's description.
2. A study waits for the longest of these that may still end in it, before a kind of series that it lacks or another of
   a kind that it has: twice as long if no other of that kind is known, half as long again if one, and so on.
3. Of a description that KNOWN_GROUP studies had, only what came to studies of that description counts; studies that are
   STORED, of an earlier day, are a description of their own.
4. One study in RARE may be told too early: as many of the longest silences are left out.
5. A source that has shown fewer than KNOWN studies waits PRIOR_S at least, of which a rest fades with further studies.

What was learnt is a JSON object, {} of a new source: `studies`, a count; `groups`, by description how many studies it
had; `late`, rows of [number of the study in its group, silence in s, kind, whether it had that kind, group].
"""

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from common.study_kinds import STORED

PRIOR_S = 1800.0  # least wait of a source that is not known yet; reconstructions come within half an hour
PRIOR_STORED_S = 120.0  # the same, of stored studies: nothing more is made of them, only sent
KNOWN = 10  # studies that make a source known
KNOWN_GROUP = 4  # studies that make a description known
FADED = 0.3  # part of the prior that is left then; of twice as many studies half of that, and so on
RARE = 25  # studies of which one may be told too early
SURE, SURE_S = 1.5, 7200.0  # a PACS that receives knows no more than we: this many times the wait, and this at least
FLOOR_S = 60.0  # least wait; also covers a sender that begins again
SHORTEST_S = 40.0  # silences below lengthen no wait
LONGEST_S = 4 * 3600.0  # silences beyond are never waited for: an addendum of the next day
MEMORY = 100  # studies of a group for which a silence is remembered
LONGEST_OF_A_KIND = 6  # silences that are remembered of each group and kind: more than MEMORY / RARE
MAX_LATE = 120  # silences in all: 45 bytes each
MAX_GROUPS = 32  # descriptions that are remembered of a source: 25 bytes each
MAX_KINDS = 64  # kinds of series that are remembered of a study

_Row = list[Any]
_NUMBER, _SILENCE, _KIND, _AGAIN, _GROUP = range(5)
_KINDS_OF_VALUES: tuple[Any, ...] = (int, (int, float), str, int, str)


class Study(NamedTuple):
    """What of a study says what may still come."""

    kinds: Collection[str] = ()
    """The kinds of its series (common/study_kinds.py): MAX_KINDS at most."""
    group: str = ""
    """The group of its description (common/study_kinds.py)."""


ANY = Study()


def is_readable(learnt: Any) -> bool:
    """Return whether this can have been learnt: another version, or a person, may have stored something else."""
    if not isinstance(learnt, dict):
        return False
    groups, late = learnt.get("groups", {}), learnt.get("late", [])
    numbers = [learnt.get("studies", 0), *(groups.values() if isinstance(groups, dict) else [None])]
    return all(isinstance(n, int) for n in numbers) and isinstance(late, list) and all(map(_is_row, late))


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != len(_KINDS_OF_VALUES):
        return False
    has_form = all(isinstance(value, kind) for value, kind in zip(row, _KINDS_OF_VALUES, strict=True))
    return has_form and 0 <= row[_SILENCE] <= LONGEST_S


# --- learning --------------------------------------------------------------------------------------------------


def learn(learnt: Mapping[str, Any], silence_s: float, study: Study = ANY, came: str = "") -> dict[str, Any]:
    """Return what is learnt with a silence that a series of the kind `came` ended. `study` is as it was before."""
    if not SHORTEST_S < silence_s <= LONGEST_S:
        return dict(learnt)
    number = _groups(learnt).get(study.group, 0) + 1
    row = [number, round(silence_s), came, int(came in study.kinds), study.group]
    return {**learnt, "late": _few([*_late(learnt), row], _groups(learnt))}


def ended(learnt: Mapping[str, Any], study: Study = ANY) -> dict[str, Any]:
    """Return what is learnt with a study that has ended: call it once a study, when it is first told complete."""
    groups = dict(_groups(learnt))
    groups[study.group] = groups.pop(study.group, 0) + 1  # the last that was seen stands last
    while len(groups) > MAX_GROUPS:
        del groups[next(iter(groups))]
    return {"studies": learnt.get("studies", 0) + 1, "groups": groups, "late": _few(_late(learnt), groups)}


def _few(late: list[_Row], groups: Mapping[str, int]) -> list[_Row]:
    """Leave out what is too old, of each kind and group all but the longest and latest, and of too many the oldest."""
    recent = [row for row in late if row[_NUMBER] > groups.get(row[_GROUP], 0) - MEMORY]
    order = sorted(range(len(recent)), key=lambda n: (_case(recent[n]), -recent[n][_SILENCE], -n))
    kept = [n for _, same in groupby(order, key=lambda n: _case(recent[n])) for n in list(same)[:LONGEST_OF_A_KIND]]
    return [recent[n] for n in sorted(kept)[-MAX_LATE:]]


def _case(row: _Row) -> tuple[str, str, int]:
    return row[_GROUP], row[_KIND], row[_AGAIN]


# --- waiting ---------------------------------------------------------------------------------------------------


def timeout_s(learnt: Mapping[str, Any], study: Study = ANY) -> float:
    """Return how long a study has to be silent to have ended."""
    of_group, of_source = _groups(learnt).get(study.group, 0), learnt.get("studies", 0)
    known = of_group >= KNOWN_GROUP
    seen, enough = (of_group, KNOWN_GROUP) if known else (of_source, KNOWN)
    by_kind: dict[str, list[float]] = {}
    for row in _likely(learnt, study, of_group) if known else _likely(learnt, study, of_group, of_source):
        by_kind.setdefault(row[_KIND], []).append(row[_SILENCE])
    longest_s = max((max(silences) * (1 + 1 / len(silences)) for silences in by_kind.values()), default=0.0)
    prior_s = PRIOR_STORED_S if study.group == STORED else PRIOR_S
    return max(FLOOR_S, longest_s, prior_s if seen < enough else prior_s * FADED * enough / seen)


def sure_s(learnt: Mapping[str, Any], study: Study = ANY) -> float:
    """Return how long a study has to be silent until its PACS is believed, if that may itself still receive it."""
    least_s = 0.0 if study.group == STORED else SURE_S
    return max(least_s, SURE * timeout_s(learnt, study))


def _likely(learnt: Mapping[str, Any], study: Study, of_group: int, of_source: int | None = None) -> list[_Row]:
    """Return the silences that may end in a study, without those that are too rare among as many studies.

    With `of_source` those of other groups, too: what came to its own few studies is not rare among these.
    """
    awaited = [row for row in _late(learnt) if (row[_KIND] in study.kinds) == bool(row[_AGAIN])]
    awaited.sort(key=lambda row: -row[_SILENCE])
    own = [row for row in awaited if row[_GROUP] == study.group][min(of_group, MEMORY) // RARE :]
    if of_source is None:
        return own
    return own + [row for row in awaited if row[_GROUP] != study.group][min(of_source, MEMORY) // RARE :]


def _groups(learnt: Mapping[str, Any]) -> Mapping[str, int]:
    groups: Mapping[str, int] = learnt.get("groups", {})
    return groups


def _late(learnt: Mapping[str, Any]) -> list[_Row]:
    late: list[_Row] = learnt.get("late", [])
    return late
