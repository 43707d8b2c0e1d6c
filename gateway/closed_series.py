"""What is remembered of series that were reported: their revision for long, their images for a while."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.idle import Phase, Source
from models import SeriesKey, SeriesVerdict

REMEMBERED_REVISIONS = 100_000  # closed series whose revision number is known; beyond it numbering restarts at 1
REMEMBERED_IMAGES = 200_000  # of closed series, to tell late images from a series sent again
REMEMBERED_S = 800.0  # how long they are, by default


@dataclass(slots=True)
class ClosedSeries:
    """What is remembered of a reported series."""

    revision: int
    source: Source
    phase: Phase
    last_seen: float
    closed_at: float
    verdict: SeriesVerdict
    taught: bool
    """Its silences were the sender's own."""
    held: Mapping[str, None]
    """The SOP Instance UIDs of all its revisions; empty where they are forgotten."""


class ClosedSeriesMemory:
    """Remembers reported series, within bounds; the oldest are forgotten first."""

    def __init__(self, remember_s: float, revisions: Mapping[SeriesKey, int]) -> None:
        """Begin with the `revisions` of an earlier run."""
        self._remember_s = remember_s
        self._closed: dict[SeriesKey, ClosedSeries | int] = dict(revisions)  # of an earlier run, the revision only
        self._recent: dict[SeriesKey, ClosedSeries] = {}  # those whose images are remembered, in the order of closing
        self._recent_images = 0

    @property
    def images(self) -> int:
        """How many images are remembered."""
        return self._recent_images

    def add(self, key: SeriesKey, closed: ClosedSeries, now: float) -> None:
        """Keep a closed series in mind."""
        self._closed[key] = self._recent[key] = closed
        if len(self._closed) > REMEMBERED_REVISIONS:
            del self._closed[next(iter(self._closed))]  # its images are forgotten in their turn
        self._recent_images += len(closed.held)
        while self._recent:
            key, oldest = next(iter(self._recent.items()))
            if self._recent_images <= REMEMBERED_IMAGES and self._remembers(oldest, now):
                break
            self._recent_images -= len(oldest.held)
            oldest.held = {}
            del self._recent[key]

    def take(self, key: SeriesKey, now: float) -> tuple[int, ClosedSeries | None]:
        """Forget a series that is opened again; return its last revision, and itself if its images are remembered."""
        closed = self._closed.pop(key, 0)
        previous = closed if isinstance(closed, ClosedSeries) and self._remembers(closed, now) else None
        if (recent := self._recent.pop(key, None)) is not None:
            self._recent_images -= len(recent.held)
        return closed.revision if isinstance(closed, ClosedSeries) else closed, previous

    def _remembers(self, closed: ClosedSeries, now: float) -> bool:
        return bool(closed.held) and now <= closed.closed_at + self._remember_s
