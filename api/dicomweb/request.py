"""A QIDO-RS request's parameters, understood (PS3.18 §8.3.4; matching PS3.4 §C.2.2.2)."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from unicodedata import normalize

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from common.errors import SeriesGatewayError
from models import MAX_UID, is_standard_uid, is_uid
from storage.matching import AnyOf, Like, Match, OneOf, Range
from storage.merge import FOLDED
from storage.search import KEYS, REQUEST, Level, Search

MAX_LIMIT = 1000  # results of one answer
MAX_VALUE = 1024  # characters of a value that is no list
MAX_VALUES = 16  # of one attribute, by repeating it; a list of UIDs may be longer
MAX_UNKNOWN = 64  # parameters of a request
SHOWN = 8  # names in one Warning
DATES_AND_TIMES = (
    ("StudyDate", "StudyTime"),
    ("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
)
UNSUPPORTED = {  # PS3.18 §8.3.4.2, -5, -6; each with what the standard wants answered
    "fuzzymatching": "The fuzzymatching parameter is not supported. Only literal matching has been performed.",
    "emptyvaluematching": (
        "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed."
    ),
    "multiplevaluematching": (
        "The multiplevaluematching parameter is not supported. Multiple Value Matching has not been performed."
    ),
}
A_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
A_TAG = re.compile(r"[0-9A-Fa-f]{8}")
A_DAY = re.compile(r"[0-9]{8}|[0-9]{4}\.[0-9]{2}\.[0-9]{2}")  # the latter is ACR-NEMA's (PS3.5 table 6.2-1)
A_TIME = re.compile(r"([01][0-9]|2[0-3])(:?[0-5][0-9](:?([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
A_COUNT = re.compile(r"[0-9]{1,9}")
AN_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")
CONTROL = re.compile(r"[\0-\x1f\x7f]")
DAYS = "give a date as 20260131, or a range as 20260101-20260131; either end may be left out"
TIMES = "give a time as 0930, 093000 or 093000.5, or a range as 09-1730; either end may be left out"


UIDS = f"a UID is ASCII without backslash, at most {MAX_UID} characters"


class BadQuery(SeriesGatewayError):
    """The request cannot be understood. The text names the parameter and the cure, never the value."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asks for."""

    search: Search
    include: frozenset[str]
    """Keywords of what is to be returned beside what always is; `all` is one."""
    accept: str | None
    warnings: tuple[str, ...]


def parse(level: Level, parameters: Iterable[tuple[str, str]], path: Mapping[str, str]) -> Query:
    """Understand the parameters of a search for `level` below `path` ({study} and {series}). Raises BadQuery."""
    controls: dict[str, str] = {}
    values: dict[str, list[tuple[str, str]]] = {}
    include: set[str] = set()
    unknown: list[str] = []
    for name, value in parameters:
        if name in CONTROLS:
            if name in controls:
                raise BadQuery(f"{name}: given more than once; give it once")
            controls[name] = value
            continue
        fields = [field for field in value.split(",") if field and field != "all"] if name == INCLUDE else [name]
        known = [_attribute(INCLUDE if name == INCLUDE else _shown(name), field) for field in fields]
        unknown += [_shown(name)] * known.count(None)
        if len(unknown) > MAX_UNKNOWN:
            raise BadQuery(f"more than {MAX_UNKNOWN} parameters name no attribute of DICOM; leave them out")
        if name == INCLUDE:
            include |= {keyword for keyword in known if keyword} | ({"all"} & {*value.split(",")})
        elif known[0]:
            values.setdefault(known[0], []).append((name, value.strip(" ")))
    keys, ignored = _keys(level, values)
    limit = _count(controls, "limit", MAX_LIMIT)
    return Query(
        search=Search(level, _within(path, keys), min(limit, MAX_LIMIT), _count(controls, "offset", 0)),
        include=frozenset(field.partition(".")[0] for field in include | values.keys()),
        accept=controls.get("accept"),
        warnings=tuple(_warnings(controls, unknown, ignored)),
    )


def _shown(name: str) -> str:
    """Return a parameter's name if it can be one: else it may be a value."""
    return name if A_NAME.fullmatch(name) else "a parameter"


def _attribute(shown: str, path: str) -> str | None:
    """Return the keyword of an attribute given by keyword or tag, or several with dots: those of nested sequences.

    None if it is none. Raises BadQuery if it is nearly one: ignored, it would find more than was asked for.
    """
    keywords = [_keyword(part) for part in path.split(".")]
    if all(keywords):
        return ".".join(keywords)
    for given in (path, path.rpartition(".")[2]):
        if len(given) <= MAX_KEYWORD and (close := difflib.get_close_matches(given.lower(), NAMES, n=1, cutoff=0.8)):
            raise BadQuery(f"{shown}: names no attribute of DICOM; did you mean {NAMES[close[0]]}?")
    return None


def _keyword(given: str) -> str:
    """Return the keyword of an attribute; empty if there is none."""
    if A_TAG.fullmatch(given):
        tag = int(given, 16)
        return keyword_for_tag(tag) or (given.upper() if (tag >> 16) % 2 else "")  # a private one has none
    return given if tag_for_keyword(given) is not None else ""


def _keys(level: Level, values: Mapping[str, list[tuple[str, str]]]) -> tuple[dict[str, Match], list[str]]:
    """Return what is to be matched, and the names of what cannot be."""
    keys: dict[str, Match] = {}
    ignored = []
    for key, given in values.items():
        name = given[0][0]
        if key == REQUEST and any(value for _, value in given):
            raise BadQuery(f"{name}: is a sequence; match an attribute of its items, as {REQUEST}.RequestedProcedureID")
        if any(_is_universal(key, value) for _, value in given):
            continue
        if KEYS.get(key, Level.INSTANCE + 1) <= level or key == "Modality":
            keys[key] = _any_of(name, [match for name, value in given for match in _matches(name, key, value)])
        else:
            ignored.append(name)
    for day, time in DATES_AND_TIMES:  # as one range (PS3.18 §8.3.4.1.1)
        days, times = keys.get(day), keys.get(time)
        if isinstance(days, Range) and isinstance(times, Range) and "-" in values[time][0][1]:
            keys[day] = replace(days, times=times)
            del keys[time]
        elif times and any(_is_reversed(each) for each in (times.matches if isinstance(times, AnyOf) else [times])):
            raise BadQuery(f"{values[time][0][0]}: ends before it begins; give the earlier time first")
    return keys, ignored


def _is_universal(key: str, value: str) -> bool:
    """Return whether a value matches all there is, also what has no value (PS3.4 §C.2.2.2.3)."""
    return not value.strip("*") or (key in FOLDED and not value.strip("^= "))


def _any_of(name: str, matches: list[Match]) -> Match:
    """Join what one key is given for several times: it finds all that one of them finds."""
    single = dict.fromkeys(value for match in matches if isinstance(match, OneOf) for value in match.values)
    others = dict.fromkeys(match for match in matches if not isinstance(match, OneOf))
    different = (*([OneOf(tuple(single))] if single else []), *others)
    if len(others) > MAX_VALUES:
        raise BadQuery(f"{name}: given more than {MAX_VALUES} times; ask in several requests")
    return different[0] if len(different) == 1 else AnyOf(different)


def _within(path: Mapping[str, str], keys: dict[str, Match]) -> dict[str, Match]:
    """Return the keys with the study and series of the path among them."""
    for name, key in (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID")):
        if name not in path:
            continue
        uid = path[name]
        if not is_uid(uid):
            raise BadQuery(f"{key} in the path: is not a UID; {UIDS}")
        given = keys.get(key)
        keys[key] = OneOf((uid,) if not isinstance(given, OneOf) or uid in given.values else ())
    return keys


def _count(controls: Mapping[str, str], name: str, default: int) -> int:
    text = controls.get(name)
    if text is None:
        return default
    if not A_COUNT.fullmatch(text):
        raise BadQuery(f"{name}: is not a whole number from 0 to 999999999; give one, or leave it out")
    return int(text)


def _warnings(controls: Mapping[str, str], unknown: list[str], ignored: list[str]) -> Iterable[str]:
    for name, warning in UNSUPPORTED.items():
        if controls.get(name, "false") not in ("true", "false"):
            raise BadQuery(f"{name}: is neither true nor false; give one of them")
        if controls.get(name) == "true":
            yield warning
    if controls.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise BadQuery("charset: only utf-8 is spoken; leave it out")
    if unknown:
        yield f"The following parameters are not known and were ignored: {_listed(unknown)}"
    if ignored:
        yield f"The following attributes cannot be matched here and were ignored: {_listed(ignored)}"


def _listed(names: Iterable[str]) -> str:
    """Name as many as a header may hold that every proxy lets through."""
    different = list(dict.fromkeys(names))
    more = [f"and {len(different) - SHOWN} more"] if len(different) > SHOWN else []
    return ", ".join([*different[:SHOWN], *more])


# --- values -----------------------------------------------------------------------------------------------------


def _matches(name: str, key: str, value: str) -> Iterable[Match]:
    """Return the ways in one of which an attribute is to match. Raises BadQuery."""
    if CONTROL.search(value):
        raise BadQuery(f"{name}: has a control character; leave it out")
    vr = _vr(key)
    if vr == "UI":
        return [_uids(name, value)]
    if len(value) > MAX_VALUE:
        raise BadQuery(f"{name}: is longer than {MAX_VALUE} characters; no such value is known, give a shorter one")
    if vr == "DA":
        return [_days(name, value)]
    if vr == "TM":
        return [_times(name, value)]
    if vr in ("IS", "US"):
        if not AN_INTEGER.fullmatch(value):
            raise BadQuery(f"{name}: is not a whole number; give one")
        return [OneOf((value,))]
    # A name is folded in the database; other text stands there as it was sent, in one form of Unicode or the other.
    forms = [value] if vr == "PN" else dict.fromkeys((value, normalize("NFC", value), normalize("NFD", value)))
    if {"*", "?"} & set(value):
        return [Like(form) for form in forms]
    return [OneOf(tuple(code.strip(" ") for code in re.split(r"[,\\]", f)) if vr == "CS" else (f,)) for f in forms]


def _vr(key: str) -> str:
    return dictionary_VR(key.rpartition(".")[2])


def _uids(name: str, value: str) -> OneOf:
    """Read a list of UIDs; a comma may also stand in a UID that is none of PS3.5 §9.1."""
    uids = re.split(r"[,\\]", value)
    if not all(map(is_uid, uids)):
        raise BadQuery(f"{name}: is not a UID; {UIDS}; separate several by commas")
    with_comma = is_uid(value) and not all(map(is_standard_uid, uids))
    return OneOf(tuple(dict.fromkeys([*uids, *([value] if with_comma else [])])))


def _days(name: str, value: str) -> Match:
    first, dash, last = (text.strip(" ") for text in value.partition("-"))
    if not (first or last) or not all(_is_day(text) for text in (first, last) if text):
        raise BadQuery(f"{name}: is not a date; {DAYS}")
    first, last = first.replace(".", ""), last.replace(".", "")
    if not dash:
        return OneOf((first,))
    if first and last and last < first:
        raise BadQuery(f"{name}: ends before it begins; give the earlier date first")
    return Range(first or None, last or None)


def _is_day(text: str) -> bool:
    day = text.replace(".", "")
    try:
        return A_DAY.fullmatch(text) is not None and bool(date(int(day[:4]), int(day[4:6]), int(day[6:])))
    except ValueError:
        return False


def _times(name: str, value: str) -> Range:
    """Read a time or a range; a time stands for all that begin so: 0930 for 093059.999, too."""
    first, dash, last = (text.strip(" ") for text in value.partition("-"))
    if not (first or last) or not all(A_TIME.fullmatch(text) for text in (first, last) if text):
        raise BadQuery(f"{name}: is not a time; {TIMES}")
    first, last = first.replace(":", ""), last.replace(":", "")
    return Range(_shortest(first) or None, (last if dash else first) or None)


def _is_reversed(times: Match) -> bool:
    low, high = (times.low, times.high) if isinstance(times, Range) else (None, None)
    return low is not None and high is not None and high < low and not low.startswith(high)


def _shortest(time: str) -> str:
    """Cut the zeros at the end of a time: what is as late or later, of any precision, is then no smaller as text."""
    whole, _, fraction = time.partition(".")
    if fraction.strip("0"):
        return f"{whole}.{fraction.rstrip('0')}"
    while len(whole) > 2 and whole.endswith("00"):
        whole = whole[:-2]
    return whole


CONTROLS = ("limit", "offset", "accept", "charset", *UNSUPPORTED)
INCLUDE = "includefield"
NAMES = {name.lower(): name for name in (*CONTROLS, INCLUDE, *KEYS)}
MAX_KEYWORD = max(map(len, NAMES)) + 8  # characters of what is nearly a name
