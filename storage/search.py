"""What QIDO-RS asks: which studies, series and instances match, streamed in the order of an index.

A study is found by those of its series that match, and the first of them stands for it; its totals are its own row's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, Text, and_, exists, func, or_, select, union

from models import INSTANCE_KEYWORDS
from storage.engine import Engine
from storage.folding import spellings
from storage.matching import AnyOf, ByBytes, FirstGroups, FurtherGroup, Like, Match, OneOf, Range, is_prefix, matches
from storage.merge import FOLDED
from storage.schema import instances, series, studies


class Level(IntEnum):
    """Of the hierarchy (PS3.4 §C.6.2): who is asked for series is told of their studies too."""

    STUDY = 1
    SERIES = 2
    INSTANCE = 3


REQUEST = "RequestAttributesSequence"
REQUEST_ITEMS = 8  # items of a series' request that are looked at
KEYS = {
    keyword: level
    for level, keywords in (
        (Level.STUDY, "StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber"),
        (Level.STUDY, "ModalitiesInStudy ReferringPhysicianName PatientID PatientName PatientBirthDate PatientSex"),
        (Level.SERIES, "SeriesInstanceUID SeriesNumber SeriesDescription Modality"),
        (Level.SERIES, "PerformedProcedureStepStartDate PerformedProcedureStepStartTime"),
        (Level.SERIES, f"{REQUEST}.ScheduledProcedureStepID {REQUEST}.RequestedProcedureID"),
        (Level.INSTANCE, " ".join(("SOPInstanceUID", *INSTANCE_KEYWORDS))),
    )
    for keyword in keywords.split()
}
"""What can be matched, and whose attribute it is."""
COLUMNS = {keyword: keyword for keyword in KEYS if keyword in series.c} | FOLDED | {"ModalitiesInStudy": "Modality"}
RANGES = ("PatientName", "PatientID", "AccessionNumber", "StudyDate")  # their index has them in order
ANSWERED = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName", "NumInstances", "Attributes")


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for: the entities of a level that match every one of `keys` (PS3.4 §C.2.2.1), by keyword."""

    level: Level
    keys: Mapping[str, Match]
    limit: int
    offset: int = 0


@dataclass
class Finder:
    """The studies, series and instances of one database, searched for."""

    _engine: Engine

    async def page(self, search: Search) -> list[dict[str, Any]]:
        """Return the rows of a page, and one more if that is not the end."""
        return await self._engine.read(select_page(search))

    async def totals(self, study_instance_uids: Iterable[str]) -> list[dict[str, Any]]:
        """Return parts of studies, each with how many Series and Instances it has, and of which Modalities.

        A study's own row says it, but for one with series whose modality that does not name.
        """
        known = await self._engine.read(_select_known(study_instance_uids))
        whole = [{**row, "Modalities": [*row["Modalities"]]} for row in known if _names_all(row)]
        others = {*study_instance_uids} - {row["StudyInstanceUID"] for row in whole}
        counted = await self._engine.read(_select_totals(others)) if others else []
        return whole + [{**row, "Modalities": [*filter(None, [row["Modality"]])]} for row in counted]


def select_page(search: Search) -> Select[Any]:
    """Return the query for a page. Its rows are found by their UIDs alone, so an index is read and not the table."""
    of_instances = search.level is Level.INSTANCE
    table = series.join(instances) if of_instances else series
    uids = [series.c.SeriesInstanceUID, *([instances.c.SOPInstanceUID] if of_instances else [])]
    in_order = [keyword for keyword in RANGES if isinstance(search.keys.get(keyword), Range | Like)]
    in_order = ["PatientName"] if "PatientName" in search.keys else in_order[:1]
    order = [series.c[COLUMNS[keyword]] for keyword in in_order]
    order += [series.c.StudyInstanceUID, *uids]
    found = _select_order(search, table, order).limit(search.limit + 1).offset(search.offset).subquery()
    columns = [series.c[name] for name in ANSWERED]
    columns += [instances.c[name] for name in ("SOPInstanceUID", *INSTANCE_KEYWORDS)] if of_instances else []
    rows = table.join(found, and_(*(uid == found.c[uid.name] for uid in uids)))
    return select(*columns).select_from(rows).order_by(*order)


def _select_order(search: Search, table: FromClause, order: Sequence[ColumnElement[Any]]) -> Select[Any]:
    """Return the query for the columns of `order`, in that order, of all that matches."""
    search = replace(search, keys={keyword: _by_index(keyword, match) for keyword, match in search.keys.items()})
    once = [~_is_earlier(search)] if search.level is Level.STUDY else []
    ways = [
        select(*order).select_from(table).where(*_conditions(way, series), *once).order_by(*order)
        for way in _ways(search)
    ]
    if len(ways) == 1:
        return ways[0]
    found = union(*(select(way.limit(search.offset + search.limit + 1).subquery()) for way in ways)).subquery()
    return select(found).order_by(*(found.c[str(column.name)] for column in order))


def _names_all(study: Mapping[str, Any]) -> bool:
    """Return whether the row of a study names the modality of each series: of too many, some stand under ""."""
    return "" not in study["Modalities"]


def _select_known(study_instance_uids: Iterable[str]) -> Select[Any]:
    counted = (studies.c.NumSeries.label("Series"), studies.c.NumInstances.label("Instances"))
    query = select(studies.c.StudyInstanceUID, studies.c.Modalities, *counted)
    return query.where(studies.c.StudyInstanceUID.in_(list(study_instance_uids)))


def _select_totals(study_instance_uids: Iterable[str]) -> Select[Any]:
    counted = (func.count().label("Series"), func.sum(series.c.NumInstances).label("Instances"))
    by = (series.c.StudyInstanceUID, series.c.Modality)
    return select(*by, *counted).where(series.c.StudyInstanceUID.in_(list(study_instance_uids))).group_by(*by)


# --- what matches -----------------------------------------------------------------------------------------------


def _conditions(search: Search, of: FromClause) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions for a row of `of` (series, maybe by another name) to match."""
    for keyword, match in search.keys.items():
        if keyword == "ModalitiesInStudy" and (search.level > Level.STUDY or "Modality" in search.keys):
            yield _has_modality(match, of)
        elif not keyword.startswith(REQUEST):
            time = _stored(keyword.replace("Date", "Time"), 0, of) if isinstance(match, Range) and match.times else None
            yield matches(_value(keyword, match, of), match, _vr(keyword), time)
    request = {keyword.split(".")[1]: match for keyword, match in search.keys.items() if keyword.startswith(REQUEST)}
    if request:  # all in the same item (PS3.4 §C.2.2.2.6)
        yield or_(*(_in_item(at, request, of) for at in range(REQUEST_ITEMS)))


def _is_earlier(search: Search) -> ColumnElement[bool]:
    """Hold of a series if an earlier one of the same study matches, too."""
    earlier = series.alias("earlier")
    same_study = earlier.c.StudyInstanceUID == series.c.StudyInstanceUID
    before = earlier.c.SeriesInstanceUID < series.c.SeriesInstanceUID
    found = select(earlier.c.SeriesInstanceUID).where(same_study, before, *_conditions(search, earlier))
    # OFFSET 0 keeps PostgreSQL from making a join of it, which it plans as if all pages were wanted.
    return found.offset(0).exists()


def _has_modality(match: Match, of: FromClause) -> ColumnElement[bool]:
    other = series.alias("other")
    same_study = other.c.StudyInstanceUID == of.c.StudyInstanceUID
    return exists().where(same_study, matches(other.c.Modality, match, "CS"))


def _in_item(at: int, keys: Mapping[str, Match], of: FromClause) -> ColumnElement[bool]:
    return and_(*(matches(_stored(keyword, at, of), match, "SH") for keyword, match in keys.items()))


def _value(keyword: str, match: Match, of: FromClause) -> ColumnElement[Any]:
    """Return what an attribute is matched on: its column, or else its first value."""
    if KEYS[keyword] is Level.INSTANCE:
        return instances.c[keyword]
    if keyword not in COLUMNS:
        return _stored(keyword, 0, of)
    several = isinstance(match, AnyOf) or (isinstance(match, OneOf) and len(match.values) > 1)
    # By these no index is to be chosen: for several codes it is out of order, and series of one study are few.
    no_index = of is not series or (several and _vr(keyword) == "CS")
    return of.c[COLUMNS[keyword]].concat("") if no_index else of.c[COLUMNS[keyword]]


def _stored(keyword: str, at: int, of: FromClause) -> ColumnElement[Any]:
    """Return the value in Attributes; of days and times without what ACR-NEMA wrote between their parts."""
    text = ByBytes(of.c.Attributes[keyword, at].as_string())
    between = {"DA": ".", "TM": ":"}.get(_vr(keyword))
    return func.replace(text, between, "", type_=Text()) if between else text


# --- the way along an index -------------------------------------------------------------------------------------


def _by_index(keyword: str, match: Match) -> Match:
    """Return the same match as an index has it: names folded, text before a * as a range."""
    if keyword in FOLDED:
        names = [spelling for name in _texts(match) for spelling in spellings(name)]
        return AnyOf((*map(FirstGroups, names), *map(FurtherGroup, names)))
    if keyword in RANGES and isinstance(match, Like) and is_prefix(match.pattern):
        begin = match.pattern.rstrip("*")
        return Range(begin, begin)
    return match


def _texts(match: Match) -> Iterator[str]:
    match match:
        case AnyOf():
            for each in match.matches:
                yield from _texts(each)
        case OneOf():
            yield from match.values
        case Like():
            yield match.pattern


def _ways(search: Search) -> list[Search]:
    """Return searches that find the same together, each along an index: a name's first groups are in order there."""
    match search.keys.get("PatientName"):
        case AnyOf(matches=names):
            first = [name for name in names if isinstance(name, FirstGroups)]
            if all(is_prefix(name.pattern) or not {"*", "?"} & set(name.pattern) for name in first):
                further = AnyOf(tuple(name for name in names if isinstance(name, FurtherGroup)))
                ways: list[Match] = [*first, further]
                return [replace(search, keys={**search.keys, "PatientName": way}) for way in ways]
    return [search]


def _vr(keyword: str) -> str:
    """Return the VR of PS3.6, whose dictionary takes a third of a second to import: commands open a database, too."""
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(keyword)
