"""What the collector asks about a series, and what it is told: the words between it and the PACS."""

from collections.abc import Sequence
from dataclasses import dataclass

from models import SeriesKey


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask about a series."""

    key: SeriesKey
    calling_ae_title: str
    """Of its sender, which is asked."""
    here: frozenset[str]
    """The SOP Instance UIDs of the revision that is open."""
    fetch: bool
    """Whether what is missing is to be fetched."""
    revision: int = 1
    """Of the series; the answer carries it back."""
    classes: frozenset[str] = frozenset()
    """The SOP Class UIDs of the images at hand."""
    quiet: bool = True
    """Nothing comes any more: what is missing is to be named, too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the PACS says of a series, and what is known of it here and at the server."""

    pacs: str
    here: frozenset[str]
    """The SOP Instance UIDs of the revision when it was asked."""
    known: int = 0
    """How many those, the journal's and the server's are together."""
    count: int | None = None
    """What the PACS has; None where it did not say."""
    confirmed: bool = False
    """It is just what is known: by UIDs where the PACS listed them, else by number."""
    missing: Sequence[str] = ()
    fetched: int = 0
    problem: str | None = None
    """What failed, in words; with a count, what failed after the PACS had said it."""
    revision: int = 1
    """Of the question."""
