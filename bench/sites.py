"""Kinds of sites, made up with seeds: scanners, archives, lines and routers, with the silences that real ones have.

Each kind draws from ranges that practice knows; docs/completion.md lists them. No constant of a policy stands here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from bench.traces import Image, Sender, Site

Each = Literal["study", "job", "series", "image"]
"""What an association is opened for."""
Sending = Literal["open", "each", "batch"]
"""A device keeps one association open, opens one for each object, or sends all at the end."""
Speed = Literal["fast", "slow", "changing"]
"""Whether silences inside a series stay below a minute; `changing`: what was learnt does not hold."""


class Place(Site):
    """One run of a site of some kind."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__(seed, kind)
        self.skewed = self.rng.random() < 0.5
        self.growing: set[str] = set()
        """Series that the PACS receives while it forwards them; of the others it holds all images from the start."""

    def between(self, low: float, high: float) -> float:
        """Draw from a range: evenly, or, at every other site, with the small values more often."""
        if self.skewed:
            return math.exp(self.rng.uniform(math.log(low), math.log(high)))
        return self.rng.uniform(low, high)

    def around(self, median: float, sigma: float, low: float, high: float) -> float:
        """Draw from a log-normal distribution, cut at both ends."""
        while True:
            if low <= (drawn := self.rng.lognormvariate(math.log(median), sigma)) <= high:
                return drawn

    def one_in(self, n: float) -> bool:
        """Whether something happens that happens once in n times."""
        return self.rng.random() * n < 1

    def burst(self, t: float, sops: Sequence[str], per_s: float) -> Iterator[tuple[float, str]]:
        """When each of some images comes that are sent in one go."""
        for sop in sops:
            t += self.rng.uniform(0.6, 1.4) / per_s
            yield t, sop

    def pushed(self, t: float, size: int, per_s: float, job: int = 0, modality: str = "") -> list[Image]:
        """A new series in one go."""
        series, sops = self.series(size)
        return [Image(at, series, sop, job, modality) for at, sop in self.burst(t, sops, per_s)]

    def sent(self, sender: Sender, images: Sequence[Image], each: Each) -> float:
        """Put images on associations, one for each `each`; returns when the last has ended."""
        parts: dict[object, list[Image]] = {}
        for n, image in enumerate(sorted(images)):
            part = {"study": 0, "job": image.job, "series": image.series, "image": n}[each]
            parts.setdefault(part, []).append(image)
        return max(self.associated(sender, part) for part in parts.values())

    def associated(self, sender: Sender, images: Sequence[Image], *, aborted: bool = False) -> float:
        """One association around some images; returns when it ended."""
        opened_at = images[0].t - self.rng.uniform(0.003, 0.03)
        ended_at = images[-1].t + self.rng.uniform(0.001, 0.2)
        self.carry(sender, images, opened_at, ended_at, aborted=aborted)
        return ended_at


Play = Callable[[Place, Sender, float], float]
"""Adds one study that begins then; returns when its sender has done with it."""


# --- what scanners do ------------------------------------------------------------------------------------------


def ct(place: Place, sender: Sender, t: float, *, each: Each, slower: float = 1.0) -> float:
    """Pushes while it reconstructs: a scout, then series at the speed of the reconstruction, some interrupted."""
    images: list[Image] = []
    sizes = [place.rng.randint(1, 2), *(place.rng.randint(25, 140) for _ in range(place.rng.randint(2, 5)))]
    for job, size in enumerate(sizes):
        series, sops = place.series(size)
        broken_at = place.rng.randrange(1, size) if job and place.one_in(8) else size
        per_s = place.between(5, 30) / slower
        for part in (sops[:broken_at], sops[broken_at:]):
            if not part:
                continue
            t += place.between(2, 40) if images else 0
            images += [Image(at, series, sop, job) for at, sop in place.burst(t, part, per_s)]
            t = images[-1].t
    return place.sent(sender, images, each)


def mr(place: Place, sender: Sender, t: float) -> float:
    """A console that sends each series when it is finished; of a dynamic one, volume after volume."""
    for n in range(place.rng.randint(4, 8)):
        t += place.between(45, 240) if n else 0
        volumes = place.rng.randint(4, 14) if place.one_in(5) else 1
        size = place.rng.randint(15, 40)
        series, sops = place.series(volumes * size)
        images: list[Image] = []
        for volume in range(volumes):
            t += place.between(4, 12) if volume else 0
            part = sops[volume * size : (volume + 1) * size]
            images += [Image(at, series, sop, volume) for at, sop in place.burst(t, part, place.between(20, 60))]
        t = place.sent(sender, images, "job" if place.seed % 2 else "series")
    return t


def objects(  # noqa: PLR0913 - what tells an ultrasound machine from an angiography
    place: Place,
    sender: Sender,
    t: float,
    *,
    how: Sending,
    least: int,
    most: int,
    median_s: float,
    sigma: float,
    low_s: float,
    high_s: float,
) -> float:
    """Clips, stills or runs of one series, as somebody takes them."""
    series, sops = place.series(place.rng.randint(least, most))
    images = [Image(t, series, sops[0])]
    for sop in sops[1:]:
        t += place.around(median_s, sigma, low_s, high_s)
        images.append(Image(t, series, sop))
    if how == "batch":
        t += place.between(5, 60)
        images = [Image(at, series, sop) for at, sop in place.burst(t, sops, place.between(0.5, 3))]
    if how == "each":
        return place.sent(sender, images, "image")
    ended_at = images[-1].t + place.between(0.1, 60 if how == "open" else 2)
    place.carry(sender, images, images[0].t - 0.05, ended_at)
    return ended_at


ultrasound = partial(objects, least=3, most=40, median_s=28, sigma=1.0, low_s=2, high_s=400)
angiography = partial(objects, least=4, most=16, median_s=110, sigma=0.55, low_s=40, high_s=330)


def mammography(place: Place, sender: Sender, t: float) -> float:
    """Four or five views in one series; at every other site a big object more of each, in a second series."""
    views = place.rng.randint(4, 5)
    series, sops = place.series(views)
    second, objects = place.series(views if place.seed % 2 else 0)
    images: list[Image] = []
    for n, sop in enumerate(sops):
        t += place.between(30, 90) if n else 0
        images.append(Image(t, series, sop))
        images += [Image(t + place.between(12, 30), second, sop) for sop in objects[n : n + 1]]
    return place.sent(sender, images, "image")


def radiography(place: Place, sender: Sender, t: float) -> float:
    """One to three views, in one series or in one each."""
    views = place.rng.randint(1, 3)
    sizes = [views] if place.one_in(2) else [1] * views
    images: list[Image] = []
    for series, sops in [place.series(size) for size in sizes]:
        for sop in sops:
            t += place.between(60, 180) if images else 0
            images.append(Image(t, series, sop))
    return place.sent(sender, images, "image")


def pet(place: Place, sender: Sender, t: float) -> float:
    """CT in bursts, then PET a bed position at a time or all at once; what is computed from them minutes later."""
    images: list[Image] = []
    for job in range(place.rng.randint(1, 2)):
        images += place.pushed(t, place.rng.randint(60, 200), place.between(10, 40), job, "CT")
        t = images[-1].t + place.between(2, 40)
    images += _beds(place, t)
    for job in range(20, 20 + place.rng.randint(1, 3)):
        t = images[-1].t + place.between(60, 600)
        images += place.pushed(t, place.rng.randint(1, 60), place.between(5, 20), job)
    return place.sent(sender, images, "job")


def _beds(place: Place, t: float) -> list[Image]:
    """One series: a job a bed position, or, at every third site, one for all of them."""
    beds, size = place.rng.randint(5, 9), place.rng.randint(24, 47)
    starts = [t := t + place.between(90, 180) for _ in range(beds)]
    if place.seed % 3 == 0:
        return place.pushed(t, beds * size, 20)
    series, sops = place.series(beds * size)
    parts = [sops[bed * size : (bed + 1) * size] for bed in range(beds)]
    return [
        Image(at, series, sop, 10 + bed)
        for bed, (start, part) in enumerate(zip(starts, parts, strict=True))
        for at, sop in place.burst(start, part, 20)
    ]


# --- what archives and lines do --------------------------------------------------------------------------------

BEHIND = (("CT", "CT01"), ("CT", "CT02"), ("MR", "MR01"), ("MR", "MRSKYRA"), ("US", "US3"), ("DX", ""), ("MG", "MAMMO"))
"""Modality and station of the scanners whose studies an archive holds."""


def archive(  # noqa: PLR0913 - what tells one archive from another
    place: Place,
    sender: Sender,
    t: float,
    *,
    each: Each,
    interleaved: bool = False,
    per_s: tuple[int, int] = (15, 60),
    late: bool = False,
) -> float:
    """Forwards what it holds: with stalls, some studies twice, results later; if `late`, some series in two parts."""
    sender = Sender(sender.ae, *place.rng.choice(BEHIND))
    sizes = [round(math.exp(place.rng.uniform(0, math.log(200)))) for _ in range(place.rng.randint(1, 6))]
    left = [(series, list(sops)) for series, sops in map(place.series, sizes)]
    every = [(series, sop) for series, sops in left for sop in sops]
    held = {s: sops[-math.ceil(len(sops) / 10) :] for s, sops in left if late and len(sops) > 1 and place.one_in(10)}
    now = [(series, sop) for series, sop in every if sop not in held.get(series, ())]
    if interleaved:
        now = _shuffled_together(place, now)
    ended_at = place.sent(sender, images := _forwarded(place, t, now, per_s), each)
    for series, sops in held.items():
        after = max(image.t for image in images if image.series == series) + place.between(2, 90)
        place.associated(sender, [Image(at, series, sop) for at, sop in place.burst(after, sops, per_s[0])])
    if place.one_in(8):
        place.sent(sender, _forwarded(place, ended_at + place.between(60, 1500), every, per_s), each)
    if place.one_in(4):
        _results(place, sender.ae, ended_at)
    return ended_at


def _forwarded(place: Place, t: float, images: list[tuple[str, str]], per_s: tuple[int, int]) -> list[Image]:
    rate, forwarded = place.between(*per_s), []
    for series, sop in images:
        t += place.rng.uniform(0.6, 1.4) / rate + (place.between(1, 6) if place.one_in(300) else 0)
        forwarded.append(Image(t, series, sop))
    return forwarded


def _shuffled_together(place: Place, images: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each series in its order, one image of any of them after another."""
    turns = [series for series, _ in images]
    place.rng.shuffle(turns)
    queues: dict[str, Iterator[tuple[str, str]]] = {s: iter([i for i in images if i[0] == s]) for s in set(turns)}
    return [next(queues[series]) for series in turns]


def _results(place: Place, ae: str, t: float) -> None:
    """Reports, key images and presentation states: one object each, minutes later."""
    for _ in range(place.rng.randint(1, 3)):
        t += place.between(60, 600)
        series, (sop,) = place.series(1)
        place.associated(Sender(ae, place.rng.choice(("SR", "KO", "PR"))), [Image(t, series, sop)])


def receiving(place: Place, sender: Sender, t: float, *, each: Each, pause_s: float = 0.0) -> float:
    """Forwards each image as it gets it; some series with one pause."""
    images: list[Image] = []
    for job in range(place.rng.randint(1, 3)):
        series, sops = place.series(place.rng.randint(8, 60))
        place.growing.add(series)
        pause_at = place.rng.randrange(1, len(sops)) if pause_s and place.one_in(4) else None
        t += place.between(2, 40) if job else 0
        for n, sop in enumerate(sops):
            t += place.rng.uniform(1, 2) + (pause_s if n == pause_at else 0)
            images.append(Image(t, series, sop, job))
    return place.sent(Sender(sender.ae, *BEHIND[place.rng.randrange(4)]), images, each)


def from_ct(place: Place, sender: Sender, t: float, *, each: Each) -> float:
    """Forwards as it receives what a CT pushes while it reconstructs: in bursts, some interrupted."""
    before = len(place.events)
    t = ct(place, Sender(sender.ae, *BEHIND[0]), t, each=each)
    place.growing |= {event.series for event in place.events[before:] if event.event == "image"}
    return t


def old_then_live(place: Place, sender: Sender, t: float, *, each: Each, live: Play | None = None) -> float:
    """Ten old studies, which the PACS holds, and then one to three that it is itself receiving."""
    for _ in range(10):
        t = archive(place, sender, t, each=each) + place.between(1, 20)
    for _ in range(place.rng.randint(1, 3)):
        t = (live or partial(receiving, each=each))(place, sender, t) + place.between(5, 60)
    return t


def wan(place: Place, sender: Sender, t: float) -> float:
    """A slow line that stalls; an association in twelve aborts, and its series begins again a minute later."""
    for series, sops in [place.series(place.rng.randint(8, 60)) for _ in range(place.rng.randint(1, 4))]:
        while True:
            images = _over_the_line(place, t, series, sops)
            aborted = place.one_in(12)
            cut = place.rng.randrange(1, len(sops)) if aborted else len(sops)
            t = place.associated(sender, images[:cut], aborted=aborted)
            if not aborted:
                break
            t += 60 + place.rng.uniform(0, 2)
        t += place.between(0.5, 5)
    return t


def _over_the_line(place: Place, t: float, series: str, sops: list[str]) -> list[Image]:
    images, per_s = [], place.between(0.3, 4)
    for sop in sops:
        t += place.rng.uniform(0.6, 1.4) / per_s + (place.between(10, 60) if place.one_in(150) else 0)
        images.append(Image(t, series, sop))
    return images


# --- sites -----------------------------------------------------------------------------------------------------


def alone(studies: int, pause_s: float, play: Play, sender: Sender, place: Place) -> None:
    """One sender, study after study."""
    t = place.between(1, 60)
    for _ in range(studies):
        t = play(place, sender, t) + place.rng.expovariate(1 / pause_s)


DEVICES: list[tuple[Play, str, str, float]] = [
    (partial(ct, each="study"), "CT", "CT01", 1200),
    (partial(ct, each="job"), "CT", "CT02", 1200),
    (partial(ct, each="image"), "CT", "", 1200),
    (mr, "MR", "MR01", 600),
    (partial(ultrasound, how="open"), "US", "US1", 300),
    (partial(ultrasound, how="each"), "US", "US2", 300),
    (mammography, "MG", "MAMMO", 600),
    (partial(angiography, how="each"), "XA", "CATH1", 600),
    (radiography, "DX", "", 300),
    (pet, "PT", "PETCT", 600),
    (partial(archive, each="study"), "CT", "", 900),
    (partial(archive, each="series", late=True), "CT", "", 1800),
    (partial(receiving, each="image"), "CT", "", 900),
    (wan, "CT", "CTREMOTE", 900),
]
"""What stands behind a router, or appears as a new source: how it sends, modality, station, pause between studies."""


def router(hours: float, stations: bool, place: Place) -> None:
    """All of them at once, under one AE title."""
    for play, modality, station, pause_s in DEVICES:
        sender, t = Sender("ROUTER", modality, station if stations else ""), place.rng.uniform(0, 600)
        while t < hours * 3600:
            t = play(place, sender, t) + place.rng.expovariate(1 / pause_s)
    if not stations:
        place.events = [replace(event, station="") for event in place.events]


def new_sources(sources: int, place: Place) -> None:
    """Senders that nobody has seen before, of every kind, for a few studies each."""
    for n in range(sources):
        play, modality, station, pause_s = place.rng.choice(DEVICES)
        t = place.rng.uniform(0, 8 * 3600)
        for _ in range(place.rng.randint(1, 4)):
            t = play(place, Sender(f"NEW{n}", modality, station), t) + place.rng.expovariate(1 / pause_s)


def upgrade(studies: int, place: Place) -> None:
    """A scanner that changes from an association a job to one an image, at a fifth of the speed."""
    t = 1.0
    for n in range(studies):
        old = n < studies / 2
        t = ct(place, CT, t, each="job" if old else "image", slower=1 if old else 5)
        t += place.rng.expovariate(1 / 240)


@dataclass(frozen=True)
class Kind:
    """A kind of site, which makes up a run from a seed."""

    name: str
    speed: Speed
    fill: Callable[[Place], None]

    def make(self, seed: int) -> Place:
        place = Place(seed, self.name)
        self.fill(place)
        return place


def _alone(name: str, speed: Speed, sender: Sender, play: Play, often: tuple[int, float]) -> Kind:
    return Kind(name, speed, partial(alone, *often, play, sender))


CT, MR, PACS = Sender("CT_1", "CT", "CT01"), Sender("MR_1", "MR", "MR01"), Sender("PACS", "CT")
US, MG, XA = Sender("US_1", "US", "US1"), Sender("MG_1", "MG", "MAMMO"), Sender("XA_1", "XA", "CATH1")
DX, PT, REMOTE = Sender("DX_1", "DX"), Sender("PT_1", "PT", "PETCT"), Sender("REMOTE", "CT", "CTREMOTE")
KINDS = [
    _alone("CT, an association a study", "fast", CT, partial(ct, each="study"), (60, 240)),
    _alone("CT, an association a job", "fast", CT, partial(ct, each="job"), (60, 240)),
    _alone("CT, an association an image", "fast", CT, partial(ct, each="image"), (60, 240)),
    _alone("MR console", "fast", MR, mr, (60, 300)),
    _alone("PACS, an association a series", "fast", PACS, partial(archive, each="series"), (70, 60)),
    _alone("PACS, interleaved", "fast", PACS, partial(archive, each="study", interleaved=True), (70, 60)),
    _alone("PACS, an association an image", "fast", PACS, partial(archive, each="image"), (40, 60)),
    _alone("PACS, a tenth late", "fast", PACS, partial(archive, each="series", late=True), (60, 60)),
    _alone("PACS, migration", "fast", PACS, partial(archive, each="study", per_s=(60, 150)), (60, 20)),
    _alone("PACS, receives, an association an image", "fast", PACS, partial(receiving, each="image"), (60, 120)),
    _alone("PACS, receives, an association a study", "fast", PACS, partial(receiving, each="study"), (60, 120)),
    _alone("WAN", "fast", REMOTE, wan, (120, 120)),
    _alone("ultrasound, one open association", "slow", US, partial(ultrasound, how="open"), (80, 300)),
    _alone("ultrasound, an association each", "slow", US, partial(ultrasound, how="each"), (80, 300)),
    _alone("ultrasound, all at the end", "slow", US, partial(ultrasound, how="batch"), (80, 300)),
    _alone("mammography", "slow", MG, mammography, (100, 240)),
    _alone("angiography, one open association", "slow", XA, partial(angiography, how="open"), (60, 900)),
    _alone("angiography, an association each", "slow", XA, partial(angiography, how="each"), (60, 900)),
    _alone("angiography, all at the end", "slow", XA, partial(angiography, how="batch"), (60, 900)),
    _alone("radiography", "slow", DX, radiography, (150, 120)),
    _alone("PET/CT", "slow", PT, pet, (60, 600)),
    Kind("neutral router, station names", "slow", partial(router, 2, True)),
    Kind("neutral router, no station names", "slow", partial(router, 2, False)),
    Kind("new sources all the time", "changing", partial(new_sources, 60)),
    Kind("upgrade", "changing", partial(upgrade, 80)),
]

ASKED = [
    _alone("holds all from the start", "fast", PACS, partial(archive, each="study"), (80, 60)),
    _alone("receives, an association an image", "fast", PACS, partial(receiving, each="image"), (40, 120)),
    _alone("receives, an association a study", "fast", PACS, partial(receiving, each="study"), (40, 120)),
    _alone("receives, pauses of 6 s", "fast", PACS, partial(receiving, each="study", pause_s=6), (40, 120)),
    _alone("ten old studies, then live ones", "changing", PACS, partial(old_then_live, each="image"), (10, 60)),
    _alone("the same, an association a study", "changing", PACS, partial(old_then_live, each="study"), (10, 60)),
    _alone("receives from a CT that pauses", "fast", PACS, partial(from_ct, each="study"), (20, 120)),
    _alone(
        "ten old studies, then from such a CT",
        "changing",
        PACS,
        partial(old_then_live, each="study", live=partial(from_ct, each="study")),
        (10, 60),
    ),
]
"""PACS that can be asked. Behind the last two stands a scanner whose first long pause nobody can know of."""
