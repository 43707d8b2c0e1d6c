"""How long a series may be quiet before it is taken to be over: fixed, or learnt per source. Pure: no clock, no I/O.

A series' silence has a phase, which says how likely another image is. The adaptive policy learns, for each source and
phase, the longest silences that another image did end, and waits a little longer than nearly all of them.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol


class Phase(Enum):
    """Where a silence stands; what stands further down is the stronger hint that the series is over."""

    OPEN = "open"  # an association that carried the series is open, and carried no other since
    MOVED = "moved"  # it went on to other series
    RELEASED = "released"  # every association that carried the series has ended
    COUNTED = "counted"  # as many images as a tag says (ImagesInAcquisition and the like) have come


class Source(NamedTuple):
    """Who sends what: silences of one source resemble each other."""

    calling_ae_title: str
    modality: str
    station: str = ""
    """StationName (0008,1010): behind a PACS all scanners share its AE title."""


class IdlePolicy(Protocol):
    """Decides how long to wait, and learns from what came."""

    @property
    def name(self) -> str: ...

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        """The idle time-out; `longest_s` are the longest silences that this series has ended so far."""
        ...

    def grace_s(self, timeout_s: float) -> float:
        """How much longer to wait after it, before the series is reported."""
        ...

    def learn(self, source: Source, longest_s: Mapping[Phase, float]) -> None:
        """A series is over: its longest silence in each phase it was in, 0 where no image came after."""
        ...

    def known(self, source: Source) -> int:
        """How many series the time-out of this source rests on."""
        ...

    def news(self) -> dict[Source, str]:
        """What was learnt since the last time, for `load` after a restart."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same for everyone."""

    idle_timeout_s: float
    name: str = "fixed"

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        return self.idle_timeout_s

    def grace_s(self, timeout_s: float) -> float:
        return 0.0

    def learn(self, source: Source, longest_s: Mapping[Phase, float]) -> None:
        pass

    def known(self, source: Source) -> int:
        return 0

    def news(self) -> dict[Source, str]:
        return {}


# --- estimators -----------------------------------------------------------------------------------------------


class Estimator(Protocol):
    """Bounds nearly all of the silences it was shown."""

    def add(self, seconds: float) -> None: ...

    def bound_s(self) -> float: ...

    def dump(self) -> Any:
        """What was learnt, for `load`; JSON can hold it."""
        ...

    def load(self, dumped: Any) -> None: ...


BINS_PER_DECADE = 10
SHORTEST_S = 0.01
BINS = 5 * BINS_PER_DECADE + 1  # to 1000 s


@dataclass
class Quantile:
    """A quantile of a histogram on a logarithmic scale, in which what is old fades."""

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
        return {at: round(weight, 3) for at, weight in enumerate(self.bins) if weight > 0.0005}

    def load(self, dumped: Any) -> None:
        for at, weight in dumped.items():
            self.bins[int(at)] = float(weight)


# --- the adaptive policy --------------------------------------------------------------------------------------

PRIORS = {Phase.OPEN: 2.5, Phase.MOVED: 1.0, Phase.RELEASED: 1.0, Phase.COUNTED: 0.25}
"""Of a source not known yet, in times of `idle_timeout_s`."""
ENOUGH = 10  # series, from which on the prior no longer counts
MARGIN = 1.5  # times what was learnt
OWN_MARGIN = 1.5  # times the longest silence that this very series has ended
GRACE = 0.25  # of the time-out, once it has passed
FLOOR_S = 0.3
MAX_LEARNT = 4000  # sources times phases; who sends chooses the AE title


@dataclass
class _Learnt:
    """Of one source in one phase."""

    estimator: Estimator
    series: int = 0
    bound_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.estimator.add(seconds)
        self.series += 1
        self.bound_s = self.estimator.bound_s()  # asked for far more often than it changes


@dataclass
class Adaptive:
    """Learnt per source and phase."""

    idle_timeout_s: float
    ceiling_s: float
    estimator: Callable[[], Estimator] = Quantile
    name: str = "adaptive"
    _learnt: dict[tuple[Source, Phase], _Learnt] = field(default_factory=dict)
    _changed: set[Source] = field(default_factory=set)

    def timeout_s(self, source: Source, phase: Phase, longest_s: Mapping[Phase, float]) -> float:
        learnt = self._learnt.get((source, phase))
        bound_s = learnt.bound_s * MARGIN if learnt else 0.0
        if learnt is None or learnt.series < ENOUGH:
            bound_s = max(bound_s, PRIORS[phase] * self.idle_timeout_s)
        bound_s = max(bound_s, OWN_MARGIN * max(longest_s.values(), default=0.0))
        return min(max(bound_s, FLOOR_S), self.ceiling_s)

    def grace_s(self, timeout_s: float) -> float:
        return GRACE * timeout_s

    def learn(self, source: Source, longest_s: Mapping[Phase, float]) -> None:
        """What is beyond the ceiling is no silence of a series, but a series sent again: it teaches nothing."""
        for phase, seconds in longest_s.items():
            if seconds <= self.ceiling_s:
                self._learnt.setdefault((source, phase), _Learnt(self.estimator())).add(seconds)
                self._changed.add(source)
        while len(self._learnt) > MAX_LEARNT:
            del self._learnt[next(iter(self._learnt))]

    def known(self, source: Source) -> int:
        return max((learnt.series for (s, _), learnt in self._learnt.items() if s == source), default=0)

    def news(self) -> dict[Source, str]:
        news = {source: self._dump(source) for source in self._changed}
        self._changed.clear()
        return news

    def _dump(self, source: Source) -> str:
        phases = {p: learnt for (s, p), learnt in self._learnt.items() if s == source}
        return json.dumps({p.value: [learnt.series, learnt.estimator.dump()] for p, learnt in phases.items()})

    def load(self, source: Source, dumped: str) -> None:
        """Go on from what an earlier run learnt."""
        for phase, (series, content) in json.loads(dumped).items():
            learnt = self._learnt[source, Phase(phase)] = _Learnt(self.estimator(), series)
            learnt.estimator.load(content)
            learnt.bound_s = learnt.estimator.bound_s()
