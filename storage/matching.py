"""DICOM's ways of matching (PS3.4 §C.2.2.2) as SQL that says the same on SQLite and PostgreSQL."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Boolean, ColumnElement, FunctionElement, Integer, Text, and_, literal_column, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

LAST_CHARACTER = chr(sys.maxunicode)
FIRST_SURROGATE, AFTER_SURROGATES = 0xD800, 0xE000  # what is between is no text


@dataclass(frozen=True, slots=True)
class OneOf:
    """Single value matching, or a list of UIDs or codes (§C.2.2.2.1, -2)."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """Wildcard matching: * is any text, ? any character (§C.2.2.2.4)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`, with all that begins as `high` does, in the order of bytes (§C.2.2.2.5)."""

    low: str | None
    high: str | None
    times: "Range | None" = None
    """Of days: from which time of the first to which time of the last."""


@dataclass(frozen=True, slots=True)
class FirstGroups:
    """A name, folded, or what it begins with up to a further group: that comes behind a `=` (PS3.5 §6.2.1)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class FurtherGroup:
    """A name, folded, that has this as its second group, or as a later one."""

    pattern: str


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of these matches."""

    matches: "tuple[Match, ...]"


Match = OneOf | Like | Range | FirstGroups | FurtherGroup | AnyOf
MAX_DIGITS = 12  # of an integer string (IS)


def matches(
    value: ColumnElement[Any], match: Match, vr: str, time: ColumnElement[Any] | None = None
) -> ColumnElement[bool]:
    """Match the value of an attribute; `time` is the other half of one whose match has times."""
    match match:
        case AnyOf():
            return or_(*(matches(value, each, vr, time) for each in match.matches))
        case Range():
            return _is_within(value, match, time)
        case FirstGroups():
            return _has_first_groups(value, match.pattern)
        case FurtherGroup():
            return _has_further_group(value, match.pattern)
        case Like():
            return _is_like(value, match.pattern)
    return _is_number(value, match) if vr in ("IS", "US") else _is_one_of(value, match)


def _is_one_of(value: ColumnElement[Any], match: OneOf) -> ColumnElement[bool]:
    return value == match.values[0] if len(match.values) == 1 else value.in_(match.values)


def _is_within(value: ColumnElement[Any], match: Range, time: ColumnElement[Any] | None) -> ColumnElement[bool]:
    bounds = [_is_between(value, match)]
    if match.times and time is not None:
        if match.low is not None and match.times.low is not None:
            bounds.append(or_(value != match.low, _is_between(time, Range(match.times.low, None))))
        if match.high is not None and match.times.high is not None:
            bounds.append(or_(value != match.high, _is_between(time, Range(None, match.times.high))))
    return and_(*bounds)


def _is_between(value: ColumnElement[Any], match: Range) -> ColumnElement[bool]:
    low = [value >= match.low] if match.low is not None else []
    behind = match.high and _after(match.high)
    return and_(true(), *low, *([value < behind] if behind else []))


def _has_first_groups(value: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    if is_prefix(pattern):
        return _is_between(value, Range(pattern.rstrip("*"), pattern.rstrip("*")))
    if {"*", "?"} & set(pattern):
        return or_(_is_like(value, pattern), _is_like(value, f"{pattern}=*"))
    return and_(value >= pattern, value < f"{pattern}>", or_(value == pattern, value >= f"{pattern}="))


def _has_further_group(value: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    """Repeat the condition of an index of its own (schema.py), word by word: most names have no such group."""
    has_any = _Wildcards(value, literal_column("'*=*'"), literal_column("'%=%'"))
    behind = f"*={pattern.removeprefix('=')}"
    return and_(has_any, or_(_is_like(value, behind), _is_like(value, f"{behind}=*")))


def is_prefix(pattern: str) -> bool:
    """Return whether the only wildcard of a pattern is a `*` at its end."""
    return pattern.endswith("*") and not {"*", "?"} & set(pattern.rstrip("*"))


def _is_like(value: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    glob = pattern.replace("[", "[[]")
    like = re.sub(r"[\\%_]", r"\\\g<0>", pattern).replace("*", "%").replace("?", "_")
    return _Wildcards(value, glob, like)


def _is_number(value: ColumnElement[Any], match: OneOf) -> ColumnElement[bool]:
    """Match a number equal to the one asked for, however that is written."""
    numbers = [int(text) for text in match.values]
    if isinstance(value.type, Integer):
        return value.in_([number for number in numbers if abs(number) < 2**31])
    return value.in_([text for number in numbers for text in _written(number)])


def _written(number: int) -> Iterator[str]:
    signs = ("", "+", "-") if number == 0 else ("", "+") if number > 0 else ("-",)
    digits = str(abs(number))
    for sign in signs:
        for length in range(len(digits), MAX_DIGITS + 1):
            yield sign + digits.zfill(length)


def _after(begin: str) -> str:
    """Return the first text behind all that begin so; empty if there is none."""
    begin = begin.rstrip(LAST_CHARACTER)
    if not begin:
        return ""
    following = ord(begin[-1]) + 1
    return begin[:-1] + chr(following if following != FIRST_SURROGATE else AFTER_SURROGATES)


# --- the same on both databases ---------------------------------------------------------------------------------


class ByBytes(FunctionElement[str]):
    """Text in the order of bytes, as SQLite has it; a column says so itself (schema.ORDERED_TEXT)."""

    inherit_cache = True
    type = Text()


class Octets(FunctionElement[int]):
    """How many bytes a column's text has, a document's too."""

    inherit_cache = True
    type = Integer()


class Unindexed(FunctionElement[str]):
    """A column that SQLite, which knows no figures of its rows, is to take no index of."""

    inherit_cache = True
    type = Text()


class _Wildcards(FunctionElement[bool]):
    """Of a value, a pattern for GLOB and one for LIKE, which disregards case on SQLite."""

    inherit_cache = True
    type = Boolean()


@compiles(Octets)
def _octets(element: Octets, compiler: SQLCompiler, **kw: Any) -> str:
    return f"octet_length(CAST({compiler.process(element.clauses, **kw)} AS TEXT))"


@compiles(Octets, "sqlite")
def _octets_on_sqlite(element: Octets, compiler: SQLCompiler, **kw: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **kw)} AS BLOB))"


@compiles(Unindexed, "sqlite")
def _with_plus(element: Unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


@compiles(Unindexed)
@compiles(ByBytes, "sqlite")
def _as_it_is(element: ByBytes | Unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(ByBytes, "postgresql")
def _collate(element: ByBytes, compiler: SQLCompiler, **kw: Any) -> str:
    return f'({compiler.process(element.clauses, **kw)}) COLLATE "C"'


@compiles(_Wildcards, "sqlite")
def _glob(element: _Wildcards, compiler: SQLCompiler, **kw: Any) -> str:
    value, glob, _ = element.clauses
    return compiler.process(value.op("GLOB")(glob), **kw)


@compiles(_Wildcards, "postgresql")
def _like(element: _Wildcards, compiler: SQLCompiler, **kw: Any) -> str:
    value, _, like = element.clauses
    return compiler.process(value.like(like), **kw)  # a backslash is its escape character
