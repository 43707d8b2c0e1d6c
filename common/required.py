"""Parse SERVER_REQUIRED_SERIES: which series a study of which sources and descriptions has to have."""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple
from unicodedata import normalize

MOST = 100  # entries
MOST_SERIES = 50  # series of one entry
AN_ENTRY = re.compile(r"(?P<source>[^:=]*):(?P<study>[^=]*)=(?P<series>.*)")
FORM = "write SOURCE:STUDY=SERIES|SERIES, such as CT1*:CHEST*=Thorax 1.0|MPR cor, entries separated by ;"


class Required(NamedTuple):
    """One entry. Its parts are patterns of the shell (*, ?, [abc]) that match in whatever case."""

    source: str
    study: str
    series: tuple[str, ...]


def required_series(text: str) -> tuple[Required, ...]:
    """Parse the setting. Raises ValueError, which names the wrong entry and how to fix it."""
    found = [_entry(entry.strip()) for entry in text.split(";") if entry.strip()]
    if len(found) > MOST:
        raise ValueError(f"has {len(found)} entries: give at most {MOST}, with patterns")
    return tuple(found)


def _entry(entry: str) -> Required:
    parts = AN_ENTRY.fullmatch(entry)
    series = tuple(name.strip() for name in parts["series"].split("|")) if parts else ()
    if parts is None or not all(series):
        raise ValueError(f"entry {entry!r} cannot be read: {FORM}")
    if len(series) > MOST_SERIES:
        raise ValueError(f"entry {entry!r} names {len(series)} series: name {MOST_SERIES}")
    return Required(parts["source"].strip() or "*", parts["study"].strip() or "*", series)


def required_of(rules: Sequence[Required], kinds: Collection[tuple[str | None, str | None]]) -> tuple[str, ...]:
    """Return the series that a study has to have: those of the first entry that matches one of its series.

    `kinds`: the source and the StudyDescription of each, in whatever order: it says nothing that one came first.
    """
    for rule in rules:
        if any(_matches(source, rule.source) and _matches(study, rule.study) for source, study in kinds):
            return rule.series
    return ()


def missing_of(wanted: Collection[str], descriptions: Collection[str]) -> tuple[str, ...]:
    """Return those of the wanted series that no description matches."""
    return tuple(one for one in wanted if not any(_matches(name, one) for name in descriptions))


def _matches(text: str | None, pattern: str) -> bool:
    """Return whether a text matches a pattern, in whatever case, composed or decomposed (Unicode's NFC and NFD)."""
    composed, like = (normalize("NFC", one.casefold()) for one in ((text or "").strip(), pattern))
    return fnmatchcase(composed, like)
