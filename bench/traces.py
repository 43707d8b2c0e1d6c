"""Traces of images that arrive: read from JSON Lines, and made up with known kinds of trouble."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a trace: docs/completion.md."""

    t: float
    event: Literal["image", "opened", "released", "aborted"]
    association: int
    ae: str
    modality: str = ""
    series: str = ""
    sop: str = ""
    bytes: int = 0
    station: str = ""
    study: str = ""
    """Without one, its series is a study of its own."""
    study_description: str = ""
    description: str = ""
    """Of the series; both may be digests, which are the same for the same text."""
    stored: bool = False
    """The study was made on an earlier day than it came."""
    gateway: str = ""


TEXTS = [name for name, kind in Event.__annotations__.items() if kind is str]


class BadTrace(Exception):
    """A trace that cannot be judged. Names the file, the line, the field and the cure."""


def read_trace(path: Path) -> list[Event]:
    """Read one file. Raises BadTrace."""
    events: list[Event] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
            event = Event(**{k: v for k, v in fields.items() if k in Event.__slots__})
            _check_types(event)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadTrace(f"{where}: {error}. docs/completion.md shows what a line holds.") from error
        if event.event not in ("image", "opened", "released", "aborted"):
            raise BadTrace(f'{where}: event is "{event.event}"; it has to be image, opened, released or aborted.')
        if event.event == "image" and not (event.series and event.sop):
            raise BadTrace(f"{where}: an image without series or sop.")
        if events and event.t < events[-1].t:
            raise BadTrace(f"{where}: t={event.t} is before the line above; order the lines by t.")
        events.append(event)
    return events


def _check_types(event: Event) -> None:
    """Raises TypeError."""
    if isinstance(event.t, bool) or not isinstance(event.t, int | float) or not math.isfinite(event.t):
        raise TypeError("t is not a number of seconds")
    if not isinstance(event.association, int):
        raise TypeError("association is not a whole number")
    for name in TEXTS:
        if not isinstance(getattr(event, name), str):
            raise TypeError(f"{name} is not text")
    if not isinstance(event.stored, bool):
        raise TypeError("stored is neither true nor false")


def write_trace(path: Path, events: Sequence[Event]) -> None:
    """The inverse of `read_trace`."""
    path.write_text(
        "".join(json.dumps({k: v for k, v in asdict(e).items() if v not in ("", False)}) + "\n" for e in events)
    )


# --- made up ---------------------------------------------------------------------------------------------------


class Sender(NamedTuple):
    """Who sends, as far as a receiver can tell."""

    ae: str
    modality: str
    station: str = ""
    """StationName (0008,1010); empty where the images have none."""


class Image(NamedTuple):
    """One image and when it has come whole."""

    t: float
    series: str
    sop: str
    job: int = 0
    """Which part of its study it belongs to."""
    modality: str = ""
    """Its sender's where empty."""
    bytes: int = 525_000


class Site:
    """Makes up one run of one site: associations that begin at any time, merged in order."""

    def __init__(self, seed: int, kind: str = "") -> None:
        """Draw by `seed`, and by the `kind` of site, so that kinds of one seed have nothing in common."""
        self.rng = random.Random(f"{kind} {seed}" if kind else seed)
        self.seed = seed
        self.events: list[Event] = []
        self._associations, self._series = count(1), count(1)

    def series(self, images: int) -> tuple[str, list[str]]:
        """A new Series Instance UID and its SOP Instance UIDs."""
        uid = f"1.2.826.0.1.3680043.10.9.{self.seed}.{next(self._series)}"
        return uid, [f"{uid}.{n + 1}" for n in range(images)]

    def send(self, t: float, ae: str, modality: str, images: list[tuple[float, str, str]], end_s: float) -> float:
        """Send one association: (seconds since the one before, series, sop) each; released `end_s` after the last."""
        opened_at, timed = t, []
        for gap, series, sop in images:
            t += gap
            timed.append(Image(t, series, sop))
        self.carry(Sender(ae, modality), timed, opened_at, t + end_s)
        return t + end_s

    def carry(
        self, sender: Sender, images: Sequence[Image], opened_at: float, ended_at: float, *, aborted: bool = False
    ) -> None:
        """Send one association and what it carries."""
        association, ae = next(self._associations), sender.ae
        self.events.append(Event(opened_at, "opened", association, ae))
        for t, series, sop, _, modality, size in images:
            what = modality or sender.modality, series, sop, size, sender.station
            self.events.append(Event(t, "image", association, ae, *what))
        self.events.append(Event(ended_at, "aborted" if aborted else "released", association, ae))

    def sorted(self) -> list[Event]:
        return sorted(self.events, key=lambda event: event.t)


Kind = Callable[[Site, float], float]
"""Adds one study at a time of the run; returns when it ends."""


def burst(site: Site, t: float) -> float:
    """A PACS on a fast link: three series on one association."""
    images = [(site.rng.expovariate(50), uid, sop) for uid, sops in _some(site, 3, 20, 300) for sop in sops]
    return site.send(t, "PACS1", "CT", images, site.rng.uniform(0.001, 0.2))


def heavy_tail(site: Site, t: float) -> float:
    """A loaded archive: gaps with a Pareto tail, now and then of many seconds."""
    ((uid, sops),) = _some(site, 1, 50, 400)
    images = [(min(0.02 * site.rng.paretovariate(1.2), 25.0), uid, sop) for sop in sops]
    return site.send(t, "ARCHIVE", "MR", images, site.rng.uniform(0.01, 0.5))


def volumes(site: Site, t: float) -> float:
    """A scanner that sends volume after volume of one series while it reconstructs: pauses of seconds."""
    ((uid, sops),) = _some(site, 1, 120, 240)
    images = [(site.rng.uniform(3, 9) if n % 40 == 0 and n else 0.05, uid, sop) for n, sop in enumerate(sops)]
    return site.send(t, "FMRI", "MR", images, site.rng.uniform(0.05, 1))


def drip(site: Site, t: float) -> float:
    """A scanner that sends each image as it is made, on an association of its own."""
    ((uid, sops),) = _some(site, 1, 10, 40)
    for sop in sops:
        t = site.send(t + site.rng.uniform(1.2, 1.8), "CT1", "CT", [(0.05, uid, sop)], 0.01)
    return t


def interleaved(site: Site, t: float) -> float:
    """Three series in turn on one association, of different lengths."""
    left = [(uid, list(reversed(sops))) for uid, sops in _some(site, 3, 20, 120)]
    images = []
    while left:
        uid, sops = site.rng.choice(left)
        images.append((site.rng.expovariate(8), uid, sops.pop()))
        left = [part for part in left if part[1]]
    return site.send(t, "PACS2", "MR", images, site.rng.uniform(0.01, 2))


def several(site: Site, t: float) -> float:
    """Send one series over four associations at once."""
    ((uid, sops),) = _some(site, 1, 80, 400)
    ends = [
        site.send(t + site.rng.uniform(0, 0.3), "PACS3", "CT", [(site.rng.expovariate(20), uid, s) for s in part], 0.05)
        for part in (sops[n::4] for n in range(4))
    ]
    return max(ends)


def late(site: Site, t: float) -> float:
    """Send one association a series; one in ten has some images more some seconds later, on a new one."""
    for uid, sops in _some(site, 4, 20, 80):
        kept = site.rng.randrange(1, 6) if site.rng.random() < 0.1 else 0
        first, rest = sops[: len(sops) - kept], sops[len(sops) - kept :]
        t = site.send(t, "PACS4", "CR", [(site.rng.expovariate(40), uid, sop) for sop in first], 0.02)
        if rest:
            again = t + site.rng.uniform(2, 12)
            site.send(again, "PACS4", "CR", [(site.rng.expovariate(40), uid, sop) for sop in rest], 0.02)
        t += site.rng.uniform(0.05, 1)
    return t


def kept_open(site: Site, t: float) -> float:
    """A router that keeps its association for minutes after the last image."""
    images = [(site.rng.expovariate(30), uid, sop) for uid, sops in _some(site, 2, 20, 100) for sop in sops]
    return site.send(t, "ROUTER", "US", images, 300)


KINDS: list[Kind] = [burst, heavy_tail, volumes, drip, interleaved, several, late, kept_open]


def _some(site: Site, series: int, least: int, most: int) -> list[tuple[str, list[str]]]:
    return [site.series(site.rng.randint(least, most)) for _ in range(series)]


def synthetic(seed: int, studies: int) -> list[Event]:
    """A run of one site: studies of every kind, each source one after another, the sources side by side."""
    site = Site(seed)
    for kind in KINDS:
        t = site.rng.uniform(0, 60)
        for _ in range(studies):
            t = kind(site, t) + site.rng.expovariate(1 / 90)
    return site.sorted()
