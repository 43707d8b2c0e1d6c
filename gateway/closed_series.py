"""Remember reported series: their revision for a long time, their images for a while."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.idle import Phase, Source
from models import SeriesKey, SeriesVerdict

REMEMBERED_REVISIONS = 100_000  # closed series whose revision is remembered; a forgotten one begins again at 1
REMEMBERED_IMAGES = 200_000  # images of closed series that are remembered, to tell late images from repeated ones
REMEMBERED_S = 800.0  # how long images are remembered by default


@dataclass(slots=True)
class ClosedSeries:
    """A reported series, as it is remembered."""

    revision: int
    source: Source
    phase: Phase
    last_seen: float
    closed_at: float
    verdict: SeriesVerdict
    taught: bool
    """If true, its silences were the sender's own, and the policy has learnt from them."""
    held: Mapping[str, None]
    """The SOP Instance UIDs of all its revisions; empty once they are forgotten."""


class ClosedSeriesMemory:
    """Remembers reported series, within limits. The oldest are forgotten first."""

    def __init__(self, remember_s: float, revisions: Mapping[SeriesKey, int]) -> None:
        """Begin with the `revisions` of an earlier run."""
        self._remember_s = remember_s
        self._closed: dict[SeriesKey, ClosedSeries | int] = dict(revisions)  # of an earlier run only the revision
        self._recent: dict[SeriesKey, ClosedSeries] = {}  # series with remembered images, in the order of closing
        self._recent_images = 0

    @property
    def images(self) -> int:
        """Return how many images are remembered."""
        return self._recent_images

    def add(self, key: SeriesKey, closed: ClosedSeries, now: float) -> None:
        """Remember a closed series; forget old ones beyond the limits."""
        self._closed[key] = self._recent[key] = closed
        if len(self._closed) > REMEMBERED_REVISIONS:
            del self._closed[next(iter(self._closed))]  # its images are forgotten later, by age
        self._recent_images += len(closed.held)
        while self._recent:
            key, oldest = next(iter(self._recent.items()))
            if self._recent_images <= REMEMBERED_IMAGES and self._remembers(oldest, now):
                break
            self._recent_images -= len(oldest.held)
            oldest.held = {}
            del self._recent[key]

    def take(self, key: SeriesKey, now: float) -> tuple[int, ClosedSeries | None]:
        """Remove a series that is opened again; return its last revision and, if its images are remembered, itself."""
        closed = self._closed.pop(key, 0)
        previous = closed if isinstance(closed, ClosedSeries) and self._remembers(closed, now) else None
        if (recent := self._recent.pop(key, None)) is not None:
            self._recent_images -= len(recent.held)
        return closed.revision if isinstance(closed, ClosedSeries) else closed, previous

    def _remembers(self, closed: ClosedSeries, now: float) -> bool:
        return bool(closed.held) and now <= closed.closed_at + self._remember_s
