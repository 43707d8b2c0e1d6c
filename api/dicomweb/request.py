"""A QIDO-RS request's parameters, understood (PS3.18 §8.3.4; matching PS3.4 §C.2.2.2)."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from common.errors import GatewayError
from models import MAX_UID, is_standard_uid, is_uid
from storage.matching import Like, Match, OneOf, Range
from storage.search import KEYS, REQUEST, Level, Search

MAX_LIMIT = 1000  # results of one answer
MAX_VALUE = 1024  # characters of a value that is no list
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
A_NAME = re.compile(r"[A-Za-z0-9.]{1,128}")
A_TAG = re.compile(r"[0-9A-Fa-f]{8}")
A_DAY = re.compile(r"[0-9]{8}")
A_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9](([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
A_COUNT = re.compile(r"[0-9]{1,9}")
AN_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")
CONTROL = re.compile(r"[\0-\x1f\x7f]")
DAYS = "give a date as 20260131, or a range as 20260101-20260131; either end may be left out"
TIMES = "give a time as 0930, 093000 or 093000.5, or a range as 09-1730; either end may be left out"


UIDS = f"a UID is ASCII without backslash, at most {MAX_UID} characters"


class BadQuery(GatewayError):
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
    values: dict[str, tuple[str, str]] = {}
    include: set[str] = set()
    for name, value in parameters:
        if name == "includefield":
            include |= {field if field == "all" else _attribute(name, field) for field in value.split(",") if field}
            continue
        key = name if name in CONTROLS else _attribute(_shown(name), name)
        if key in controls or key in values:
            raise BadQuery(f"{name}: given more than once; give it once")
        if name in CONTROLS:
            controls[name] = value
        else:
            values[key] = name, value.strip(" ")
    keys, ignored = _keys(level, values)
    limit = _count(controls, "limit", MAX_LIMIT)
    return Query(
        search=Search(level, _within(path, keys), min(limit, MAX_LIMIT), _count(controls, "offset", 0)),
        include=frozenset(field.partition(".")[0] for field in include | values.keys()),
        accept=controls.get("accept"),
        warnings=tuple(_warnings(controls, ignored)),
    )


def _shown(name: str) -> str:
    """A parameter's name, where it can be one: else it may be a value."""
    return name if A_NAME.fullmatch(name) else "a parameter"


def _attribute(shown: str, path: str) -> str:
    """The keyword of an attribute given by keyword or tag, or several with dots: those of nested sequences."""
    return ".".join(_keyword(shown, part) for part in path.split("."))


def _keyword(shown: str, given: str) -> str:
    if A_TAG.fullmatch(given):
        tag = int(given, 16)
        keyword = keyword_for_tag(tag) or (given.upper() if (tag >> 16) % 2 else "")  # a private one has none
    else:
        keyword = given if tag_for_keyword(given) is not None else ""
    if not keyword:
        close = difflib.get_close_matches(given, [*CONTROLS, "includefield", *KEYS], n=1, cutoff=0.8)
        hint = f"did you mean {close[0]}?" if close else "give a keyword or tag, as PatientID or 00100020"
        raise BadQuery(f"{shown}: names no attribute of DICOM; {hint}")
    return keyword


def _keys(level: Level, values: Mapping[str, tuple[str, str]]) -> tuple[dict[str, Match], list[str]]:
    """What is to be matched, and the names of what cannot be."""
    keys: dict[str, Match] = {}
    ignored = []
    for key, (name, value) in values.items():
        if key == REQUEST and value:
            raise BadQuery(f"{name}: is a sequence; match an attribute of its items, as {REQUEST}.RequestedProcedureID")
        if not value.strip("*"):
            continue  # universal matching
        if KEYS.get(key, Level.INSTANCE + 1) <= level or key == "Modality":
            keys[key] = _match(name, key, value)
        else:
            ignored.append(name)
    for day, time in DATES_AND_TIMES:  # as one range (PS3.18 §8.3.4.1.1)
        days, times = keys.get(day), keys.get(time)
        if isinstance(days, Range) and isinstance(times, Range) and "-" in values[time][1]:
            keys[day] = replace(days, times=times)
            del keys[time]
        elif isinstance(times, Range) and _is_reversed(times):
            raise BadQuery(f"{values[time][0]}: ends before it begins; give the earlier time first")
    return keys, ignored


def _within(path: Mapping[str, str], keys: dict[str, Match]) -> dict[str, Match]:
    """With the study and series of the path."""
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


def _warnings(controls: Mapping[str, str], ignored: list[str]) -> Iterable[str]:
    for name, warning in UNSUPPORTED.items():
        if controls.get(name, "false") not in ("true", "false"):
            raise BadQuery(f"{name}: is neither true nor false; give one of them")
        if controls.get(name) == "true":
            yield warning
    if controls.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise BadQuery("charset: only utf-8 is spoken; leave it out")
    if ignored:
        yield f"The following attributes cannot be matched here and were ignored: {', '.join(ignored)}"


# --- values -----------------------------------------------------------------------------------------------------


def _match(name: str, key: str, value: str) -> Match:
    """How an attribute is to match. Raises BadQuery."""
    if CONTROL.search(value):
        raise BadQuery(f"{name}: has a control character; leave it out")
    vr = dictionary_VR(key.rpartition(".")[2])
    if vr == "UI":
        return _uids(name, value)
    if len(value) > MAX_VALUE:
        raise BadQuery(f"{name}: is longer than {MAX_VALUE} characters; no such value is known, give a shorter one")
    if vr == "DA":
        return _days(name, value)
    if vr == "TM":
        return _times(name, value)
    if vr in ("IS", "US"):
        if not AN_INTEGER.fullmatch(value):
            raise BadQuery(f"{name}: is not a whole number; give one")
        return OneOf((value,))
    if {"*", "?"} & set(value):
        return Like(value)
    return OneOf(tuple(code.strip(" ") for code in re.split(r"[,\\]", value)) if vr == "CS" else (value,))


def _uids(name: str, value: str) -> OneOf:
    """A list; a comma may also stand in a UID that is none of PS3.5 §9.1."""
    uids = re.split(r"[,\\]", value)
    if not all(map(is_uid, uids)):
        raise BadQuery(f"{name}: is not a UID; {UIDS}; separate several by commas")
    with_comma = is_uid(value) and not all(map(is_standard_uid, uids))
    return OneOf(tuple(dict.fromkeys([*uids, *([value] if with_comma else [])])))


def _days(name: str, value: str) -> Match:
    first, dash, last = (text.strip(" ") for text in value.partition("-"))
    if not (first or last) or not all(_is_day(text) for text in (first, last) if text):
        raise BadQuery(f"{name}: is not a date; {DAYS}")
    if not dash:
        return OneOf((first,))
    if first and last and last < first:
        raise BadQuery(f"{name}: ends before it begins; give the earlier date first")
    return Range(first or None, last or None)


def _is_day(text: str) -> bool:
    try:
        return A_DAY.fullmatch(text) is not None and bool(date(int(text[:4]), int(text[4:6]), int(text[6:])))
    except ValueError:
        return False


def _times(name: str, value: str) -> Range:
    """A time stands for all that begin so: 0930 for 093059.999, too."""
    first, dash, last = (text.strip(" ") for text in value.partition("-"))
    if not (first or last) or not all(A_TIME.fullmatch(text) for text in (first, last) if text):
        raise BadQuery(f"{name}: is not a time; {TIMES}")
    return Range(_shortest(first) or None, (last if dash else first) or None)


def _is_reversed(times: Range) -> bool:
    low, high = times.low, times.high
    return low is not None and high is not None and high < low and not low.startswith(high)


def _shortest(time: str) -> str:
    """The same time without zeros at its end: what is as late or later, of any precision, is no smaller as text."""
    whole, _, fraction = time.partition(".")
    if fraction.strip("0"):
        return f"{whole}.{fraction.rstrip('0')}"
    while len(whole) > 2 and whole.endswith("00"):
        whole = whole[:-2]
    return whole


CONTROLS = ("limit", "offset", "accept", "charset", *UNSUPPORTED)
