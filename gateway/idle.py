"""Decide how long a series may be silent before it counts as over: always the same, or learnt. No clock, no I/O.

A silence has a phase, which says how likely another image is. The adaptive policy learns, for each source and phase,
the longest silences that were ended by another image, and waits a little longer than nearly all of them.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from common.errors import printable
from gateway.tag_counts import IN_ACQUISITION, TAG_COUNTS

CODE_LENGTH = 16  # characters of a CS or SH, PS3.5 table 6.2-1


class Phase(Enum):
    """The phase of a silence. The later a phase is listed, the more likely the series is over."""

    ABORTED = "aborted"  # the last association of the series was aborted; its sender may begin again
    OPEN = "open"  # an association of the series is open, and has brought no other series since
    EACH = "each"  # every association of the series brought one image, and has ended
    MOVED = "moved"  # the open associations of the series have gone on to other series
    NEXT = "next"  # as EACH, and the source has begun another series since
    RELEASED = "released"  # every association of the series has ended
    COUNTED = "counted"  # as many images have come as a tag says the series has


class Source(NamedTuple):
    """Who sends what. The silences of one source are similar. An empty field stands for any."""

    calling_ae_title: str
    modality: str
    station: str = ""
    """StationName (0008,1010), since all scanners behind a PACS share its AE title."""

    @property
    def name(self) -> str:
        """Return the name of the source in reports."""
        return " ".join(filter(None, self))


def source_of(calling_ae_title: str, modality: str, station: str) -> Source:
    """Return the source of an image, from values as they were sent."""
    return Source(
        printable(calling_ae_title.strip()),
        printable(modality)[:CODE_LENGTH],
        printable(station.strip())[:CODE_LENGTH],
    )


class IdlePolicy(Protocol):
    """Decides how long to wait for the next image, and learns from series that are over."""

    @property
    def name(self) -> str: ...

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        """Return the idle time-out. `longest_s` are the longest silences so far of this series, by phase."""
        ...

    def grace_s(self, timeout_s: float) -> float:
        """Return how long to wait after the idle time-out, before the series is reported."""
        ...

    def learn(self, source: Source, longest_s: Mapping[Phase, float]) -> None:
        """Learn from a series that is over: its longest silence in each phase, 0 if no image ended one."""
        ...

    def learn_count(self, source: Source, count: str, *, right: bool) -> None:
        """Learn if a count in tags (tag_counts.py) was the number of images of a series that is over."""
        ...

    def counts_series(self, source: Source, count: str) -> bool:
        """Tell if a count in tags is the number of images of a series at this source, and not of a part of it."""
        ...

    def known(self, source: Source) -> int:
        """Return from how many series of this source the time-outs were learnt."""
        ...

    def learnt_s(self, source: Source) -> dict[Phase, float]:
        """Return the idle time-outs of this source, for the phases about which something was learnt."""
        ...

    def news(self) -> dict[Source, str | None]:
        """Return what was learnt and is not on disk yet, in the form for `load`; None for a forgotten source."""
        ...

    def kept(self, news: Mapping[Source, str | None]) -> None:
        """Note that this news is on disk."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Waits the same time for everyone."""

    idle_timeout_s: float
    name: str = "fixed"

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        return self.idle_timeout_s

    def grace_s(self, timeout_s: float) -> float:
        return 0.0

    def learn(self, source: Source, longest_s: Mapping[Phase, float]) -> None:
        pass

    def learn_count(self, source: Source, count: str, *, right: bool) -> None:
        pass

    def counts_series(self, source: Source, count: str) -> bool:
        return False

    def known(self, source: Source) -> int:
        return 0

    def learnt_s(self, source: Source) -> dict[Phase, float]:
        return {}

    def news(self) -> dict[Source, str | None]:
        return {}

    def kept(self, news: Mapping[Source, str | None]) -> None:
        pass


# --- estimators -----------------------------------------------------------------------------------------------


class Estimator(Protocol):
    """Estimates an upper bound of nearly all silences that it was given."""

    def add(self, seconds: float) -> None: ...

    def bound_s(self) -> float: ...

    def dump(self) -> Any:
        """Return what was learnt, in the form for `load`. It can be written as JSON."""
        ...

    def load(self, dumped: Any) -> None: ...


BINS_PER_DECADE = 30
BINS_PER_DECADE_BEFORE = 10  # in earlier versions
SHORTEST_S = 0.01  # upper end of the first bin
BINS = 5 * BINS_PER_DECADE + 1  # up to 1000 s


@dataclass
class Quantile:
    """A quantile of a histogram on a logarithmic scale. Older values lose weight."""

    quantile: float = 0.99
    fading: float = 0.998
    bins: list[float] = field(default_factory=lambda: [0.0] * BINS)

    def add(self, seconds: float) -> None:
        at = 0 if seconds <= SHORTEST_S else math.ceil(BINS_PER_DECADE * math.log10(seconds / SHORTEST_S))
        self.bins = [weight * self.fading for weight in self.bins]
        self.bins[min(at, BINS - 1)] += 1

    def bound_s(self) -> float:
        left = sum(self.bins) * (1 - self.quantile)
        for at in reversed(range(BINS)):
            left -= self.bins[at]
            if left < 0:
                return float(SHORTEST_S * 10.0 ** (at / BINS_PER_DECADE))
        return 0.0

    def dump(self) -> Any:
        bins = {at: round(weight, 3) for at, weight in enumerate(self.bins) if weight > 0.0005}
        return {"per_decade": BINS_PER_DECADE} | bins

    def load(self, dumped: Any) -> None:
        scale = BINS_PER_DECADE / dumped.get("per_decade", BINS_PER_DECADE_BEFORE)
        for at, weight in dumped.items():
            if at != "per_decade" and math.isfinite(float(weight)):
                self.bins[min(round(int(at) * scale), BINS - 1)] += float(weight)


# --- the adaptive policy --------------------------------------------------------------------------------------

PRIORS = {
    Phase.ABORTED: 45.0,
    Phase.OPEN: 3.0,
    Phase.EACH: 3.0,
    Phase.MOVED: 2.5,
    Phase.NEXT: 2.5,
    Phase.RELEASED: 0.9,
    Phase.COUNTED: 0.25,
}
"""The waits for an unknown source, as multiples of `idle_timeout_s`."""
ONE_BY_ONE = {"CR", "DR", "DX", "MG", "NM", "PT", "RF", "RG", "US", "XA"}  # PS3.3 C.7.3.1.1.1
ONE_BY_ONE_S = 240.0
"""The least wait, in early phases, for an unknown source of a modality whose images are made minutes apart."""
ENOUGH = 10  # series after which the prior begins to fade
FADED = 0.3  # part of the prior that is left then; with twice as many series half of that, and so on
MARGIN = 1.5  # the wait is this many times the longest silence that was learnt, or that this series had in this phase
WELL_KNOWN, WELL_KNOWN_MARGIN = 20, 1.2  # after so many series a smaller margin is enough
GRACE = 0.25  # the grace period as a part of the idle time-out
FLOOR_S = 0.3  # least idle time-out
MAX_SOURCES = 1000  # sources that are remembered; senders choose their AE titles, so this is bounded
MAX_SERIES = 10**9  # largest number of series that is believed when a journal is read
OTHER_COUNTS = tuple(count for count in TAG_COUNTS if count is not IN_ACQUISITION)
COUNTS_AFTER = 10  # series in a row that had as many images as a count in tags, after which that counts the series


@dataclass
class _Silences:
    """The silences of one source in one phase."""

    estimator: Estimator
    series: int = 0
    bound_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.estimator.add(seconds)
        self.series += 1
        self.bound_s = self.estimator.bound_s()  # cached, since it is read far more often than it changes


@dataclass
class _Habits:
    """What was learnt about one source."""

    silences: dict[Phase, _Silences] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    """The number of series in a row that had as many images as a count in tags, by the name of that."""

    @property
    def series(self) -> int:
        return max((silences.series for silences in self.silences.values()), default=0)


@dataclass
class Adaptive:
    """Learns waits by source and phase. An unknown source is treated as others of its AE title, or of its modality."""

    idle_timeout_s: float
    ceiling_s: float
    estimator: Callable[[], Estimator] = Quantile
    name: str = "adaptive"
    _habits: dict[Source, _Habits] = field(default_factory=dict)
    _changed: dict[Source, None] = field(default_factory=dict)

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        """Return the idle time-out of a phase.

        1. Begin with the longest silence of this series, and that of its source.
        2. If the source has taught from enough series, add a margin, but do not go below what is left of the prior.
        3. Otherwise also consider similar sources that have taught enough, or else the prior.
        """
        shown_s, prior_s = longest_s.get(phase, 0.0), self._prior_s(source, phase)
        for alike in _alike(source):
            silences = habits.silences.get(phase) if (habits := self._habits.get(alike)) else None
            if silences is not None and (alike == source or silences.series >= ENOUGH):
                shown_s = max(shown_s, silences.bound_s)
                if silences.series >= ENOUGH:
                    margin = MARGIN if silences.series < WELL_KNOWN else WELL_KNOWN_MARGIN
                    faded_s = FADED * PRIORS[phase] * self.idle_timeout_s * ENOUGH / silences.series
                    return self._within(max(margin * shown_s, faded_s))
        return self._within(max(MARGIN * shown_s, prior_s))

    def _prior_s(self, source: Source, phase: Phase) -> float:
        one_by_one = source.modality in ONE_BY_ONE and phase in (Phase.OPEN, Phase.EACH)
        return max(PRIORS[phase] * self.idle_timeout_s, ONE_BY_ONE_S if one_by_one else 0.0)

    def _within(self, timeout_s: float) -> float:
        return min(max(timeout_s, FLOOR_S), self.ceiling_s)

    def grace_s(self, timeout_s: float) -> float:
        return min(GRACE * timeout_s, self.ceiling_s - timeout_s)

    def learn(self, source: Source, longest_s: Mapping[Phase, float]) -> None:
        """Learn from a series for its source and similar ones. Silences beyond the ceiling count as the ceiling."""
        for alike in _alike(source):
            habits = self._of(alike)
            for phase, seconds in longest_s.items():
                silences = habits.silences.get(phase) or habits.silences.setdefault(phase, _Silences(self.estimator()))
                silences.add(min(seconds, self.ceiling_s))
        self._forget()

    def learn_count(self, source: Source, count: str, *, right: bool) -> None:
        counted = self._of(source).counted
        counted[count] = min(counted.get(count, 0) + 1, COUNTS_AFTER) if right else 0

    def counts_series(self, source: Source, count: str) -> bool:
        habits = self._habits.get(source)
        return habits is not None and habits.counted.get(count, 0) >= COUNTS_AFTER

    def known(self, source: Source) -> int:
        habits = self._habits.get(source)
        return habits.series if habits else 0

    def learnt_s(self, source: Source) -> dict[Phase, float]:
        habits = self._habits.get(source)
        return {phase: self.timeout_s(source, phase, {}) for phase in habits.silences} if habits else {}

    def news(self) -> dict[Source, str | None]:
        return {source: self._dump(source) for source in self._changed}

    def kept(self, news: Mapping[Source, str | None]) -> None:
        for source in [source for source, dumped in news.items() if self._dump(source) == dumped]:
            self._changed.pop(source, None)

    def load(self, source: Source, dumped: str) -> None:
        """Load what an earlier run learnt. Raises ValueError, TypeError or IndexError if it is something else."""
        habits = _Habits()
        for name, content in json.loads(dumped).items():
            if name == "counted":  # of IN_ACQUISITION alone, as earlier versions know it
                habits.counted[IN_ACQUISITION.name] = _within(content, COUNTS_AFTER)
                continue
            if name == "counts":
                habits.counted |= {c.name: _within(content.get(c.name, 0), COUNTS_AFTER) for c in OTHER_COUNTS}
                continue
            silences = habits.silences[Phase(name)] = _Silences(self.estimator(), _within(content[0], MAX_SERIES))
            silences.estimator.load(content[1])
            silences.bound_s = silences.estimator.bound_s()
        self._habits[source] = habits

    def _of(self, source: Source) -> _Habits:
        self._changed[source] = None
        return self._habits.setdefault(source, _Habits())

    def _dump(self, source: Source) -> str | None:
        habits = self._habits.get(source)
        if habits is None:
            return None
        content: dict[str, Any] = {phase.value: [s.series, s.estimator.dump()] for phase, s in habits.silences.items()}
        if in_acquisition := habits.counted.get(IN_ACQUISITION.name):
            content["counted"] = in_acquisition
        if others := {c.name: series for c in OTHER_COUNTS if (series := habits.counted.get(c.name))}:
            content["counts"] = others
        return json.dumps(content)

    def _forget(self) -> None:
        """Forget the sources with the fewest series, the oldest first. So new names never replace well-known ones."""
        while len(self._habits) > MAX_SOURCES:
            least = min(self._habits, key=lambda source: self._habits[source].series)
            del self._habits[least]
            self._changed[least] = None


def _within(number: Any, most: int) -> int:
    return min(max(int(number), 0), most)


def _alike(source: Source) -> Iterator[Source]:
    """Yield the source, and then its groups: any station of its AE title, its AE title, its modality."""
    yield source
    if source.station:
        yield source._replace(station="")
    if source.modality and source.calling_ae_title:
        yield Source(source.calling_ae_title, "")
        yield Source("", source.modality)
