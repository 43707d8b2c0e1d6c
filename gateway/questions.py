"""The questions that the collector asks about a series, and their answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from models import CountsOfStudy, SeriesKey


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the PACS about a series."""

    key: SeriesKey
    calling_ae_title: str
    """The AE title of its sender, which is the PACS that is asked."""
    here: frozenset[str]
    """The SOP Instance UIDs of the revision that is open."""
    fetch: bool
    """If true, missing images are fetched."""
    revision: int = 1
    """The revision of the series. The answer has the same."""
    classes: frozenset[str] = frozenset()
    """The SOP Class UIDs of the images that are here."""
    quiet: bool = True
    """If true, no images come any more, so missing ones are to be listed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the PACS has of a series, compared with what is known here and at the server."""

    pacs: str
    here: frozenset[str]
    """The SOP Instance UIDs of the revision when the question was asked."""
    known: int = 0
    """How many images are known in all: in the revision, in the journal, and at the server."""
    count: int | None = None
    """How many images the PACS has; None if it did not say."""
    confirmed: bool = False
    """True if the PACS has exactly the known images: by UIDs if it listed them, by number otherwise."""
    missing: Sequence[str] = ()
    fetched: int = 0
    problem: str | None = None
    """Why the question failed; if there is a count, what failed after it was given."""
    revision: int = 1
    """The revision in the question."""
    study: CountsOfStudy | None = None
    """The counts of the study, if the PACS gave them."""
