"""Kinds of sites for whole studies, made up with seeds: what comes to a study minutes and hours after its first series.

Each kind draws from ranges that practice knows; docs/completion.md lists them. No constant of a rule stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

from bench.sites import BEHIND, Place
from bench.traces import Event, Image, Sender
from common.required import Required

Pacs = Literal["", "receives", "series by series", "holds"]
"""No PACS; one that forwards what it receives, by image or by series; one that holds all from the start."""
STUDIES = 120  # of each sender, in each run: what a scanner makes in a week


@dataclass
class Made:
    """A study that a site makes: its series and what is said of them."""

    uid: str
    description: str
    stored: bool
    descriptions: dict[str, str] = field(default_factory=dict)
    """By series."""


class StudyPlace(Place):
    """One run of a site of some kind, with the studies of its series."""

    def __init__(self, seed: int, kind: str, pacs: Pacs) -> None:
        super().__init__(seed, kind)
        self.pacs: Pacs = pacs
        self.whole: set[str] = set()
        """Series that the PACS has whole before it forwards them."""
        self.required: tuple[Required, ...] = ()
        """The series that studies of a description always have, as SERVER_REQUIRED_SERIES would say."""
        self._of: dict[str, Made] = {}
        self._gateways: dict[str, str] = {}
        self._studies = count(1)

    def study(self, description: str, *, stored: bool = False) -> Made:
        """Begin a study."""
        return Made(f"1.2.826.0.1.3680043.10.8.{self.seed}.{next(self._studies)}", description, stored)

    def come(  # noqa: PLR0913 - what a series is
        self,
        sender: Sender,
        made: Made,
        t: float,
        description: str,
        size: tuple[int, int],
        *,
        per_s: float = 10.0,
        modality: str = "",
        gateway: str = "",
        holds: bool = False,
    ) -> float:
        """Let a series come in one go on an association of its own; returns when its last image has come."""
        series, sops = self.series(self.rng.randint(*size))
        self._of[series], self._gateways[series] = made, gateway
        made.descriptions[series] = description
        if self.pacs != "holds" and not holds:
            self.growing.add(series)
            self.whole |= {series} if self.pacs == "series by series" else set()
        images = [Image(at, series, sop, 0, modality) for at, sop in self.burst(t, sops, per_s)]
        self.associated(sender, images)
        return images[-1].t

    def sorted(self) -> list[Event]:
        """Return the events in order, each image with its study."""
        through = {e.association: self._gateways[e.series] for e in self.events if e.event == "image"}
        return [self._named(event, through[event.association]) for event in super().sorted()]

    def _named(self, event: Event, gateway: str) -> Event:
        if event.event != "image":
            return replace(event, gateway=gateway)
        made = self._of[event.series]
        event = replace(event, study=made.uid, study_description=made.description, stored=made.stored)
        return replace(event, description=made.descriptions[event.series], gateway=gateway)


Play = Callable[[StudyPlace, Sender, float], float]
"""Adds one study that begins then; returns when its scanner can begin the next."""


# --- studies as they are made ----------------------------------------------------------------------------------

PROTOCOLS = ("Thorax", "Abdomen", "Skull", "Angio")


def ct(place: StudyPlace, sender: Sender, t: float) -> float:
    """Scout and acquisitions; of some protocols, reconstructions 10 to 30 min after them, MPR minutes after these."""
    n = place.rng.randrange(len(PROTOCOLS))
    made, protocol = place.study(f"CT {PROTOCOLS[n]}"), PROTOCOLS[n]
    t = place.come(sender, made, t, "Scout", (1, 2))
    for phase in ("native", "venous")[: 1 + n % 2]:
        t = place.come(sender, made, t + place.between(5, 60), f"{protocol} {phase}", (20, 40))
    scanned = place.come(sender, made, t + place.between(3, 20), "Dose", (1, 1), modality="SR")
    if place.rng.random() < (1.0, 1.0, 0.5, 0.0)[n]:
        t = place.come(sender, made, scanned + place.between(600, 1800), f"{protocol} thin", (20, 40))
        for plane in ("cor", "sag"):
            t = place.come(sender, made, t + place.between(60, 420), f"MPR {plane}", (10, 30))
    place.required = tuple(Required("*", f"CT {name}", ("MPR sag",)) for name in PROTOCOLS[:2])
    return scanned


def pet(place: StudyPlace, sender: Sender, t: float) -> float:
    """CT, PET a bed position at a time, corrected images 3 to 10 min later, at half of the studies fused ones."""
    made = place.study("PET/CT")
    for description in ("Scout", "CT"):
        t = place.come(sender, made, t + place.between(5, 40), description, (1, 40), modality="CT")
    for bed in range(place.rng.randint(5, 8)):
        t = place.come(sender, made, t + place.between(90, 180), f"Bed {bed}", (10, 20))
    scanned = t
    for description in ("corrected", "uncorrected"):
        t = place.come(sender, made, t + place.between(180, 600), f"PET {description}", (20, 40))
    if place.one_in(2):
        place.come(sender, made, t + place.between(120, 600), "Fused", (5, 20))
    return scanned


SEQUENCES = ("loc", "t1 sag", "t2 ax", "flair", "dwi", "t2 cor", "swi", "t1 ax", "t1 gd", "perf")


def mr(place: StudyPlace, sender: Sender, t: float) -> float:
    """About eight series over 40 min, each sent when finished; one in seven has one again, one in ten one more."""
    n = place.rng.randrange(3)
    made = place.study(f"MR {('Head', 'Knee', 'Spine')[n]}")
    sequences = [f"{n} {'abc'[n]} {sequence}" for sequence in SEQUENCES[: 7 + n]]
    if place.one_in(7):
        sequences.insert(4, sequences[3])
    if place.one_in(10):
        sequences.append("addition")
    for number, sequence in enumerate(sequences):
        pause_s = place.between(600, 900) if sequence == "addition" else place.between(120, 480)
        t = place.come(sender, made, t + (pause_s if number else 0), sequence, (10, 25), per_s=20)
    return t


def reported(place: StudyPlace, sender: Sender, t: float) -> float:
    """Two to four series; of some studies (20 to 50 %) a report 5 min to 2 h later, of some key images."""
    return _reported(place, sender, t, 0.2 + 0.1 * (place.seed % 4), 1 / 6)


def seldom_reported(place: StudyPlace, sender: Sender, t: float) -> float:
    """The same, of 3 % of the studies."""
    return _reported(place, sender, t, 0.03, 0.03)


def _reported(place: StudyPlace, sender: Sender, t: float, reports: float, keys: float) -> float:
    made = place.study(place.rng.choice(("US Abdomen", "CT Thorax", "MR Head")))
    for n in range(place.rng.randint(2, 4)):
        t = place.come(sender, made, t + place.between(5, 60), f"{'abcd'[n]}", (5, 30))
    scanned = t
    if place.rng.random() < reports:
        place.come(sender, made, scanned + place.between(300, 7200), "Report", (1, 1), modality="SR")
    if place.rng.random() < keys:
        place.come(sender, made, scanned + place.between(120, 3600), "Key", (1, 1), modality="KO")
    return scanned


def spread(place: StudyPlace, sender: Sender, t: float) -> float:
    """Three to six series through two gateways in turn, seconds to minutes apart, results of some 5 to 15 min later."""
    made = place.study(place.rng.choice(("CT Thorax", "CT Skull")))
    for n in range(place.rng.randint(3, 6)):
        gateway = f"GW{n % 2}"
        t = place.come(sender, made, t + place.between(5, 120), "abcdef"[n], (10, 30), gateway=gateway)
    if place.one_in(3):
        place.come(sender, made, t + place.between(300, 900), "Result", (1, 5), gateway="GW1")
    return t


# --- what archives do ------------------------------------------------------------------------------------------


def migrated(place: StudyPlace, sender: Sender, t: float) -> float:
    """A study of an earlier day, at full speed: one to eight series, a stall of 1 to 20 s now and then."""
    sender = Sender(sender.ae, *place.rng.choice(BEHIND))
    made = place.study(place.rng.choice(PROTOCOLS), stored=True)
    for n in range(place.rng.randint(1, 8)):
        t += place.between(1, 20) if place.one_in(20) else place.between(0.01, 0.3)
        t = place.come(sender, made, t, "abcdefgh"[n], (1, 40), per_s=place.between(60, 150), holds=True)
    return t


def stored_then_live(place: StudyPlace, sender: Sender, t: float) -> float:
    """Twelve stored studies at full speed, and then two of a CT that are being made."""
    for _ in range(12):
        t = migrated(place, sender, t) + place.between(0.1, 3)
    for _ in range(2):
        t = ct(place, Sender(sender.ae, *BEHIND[0]), t + place.between(60, 300))
    return t


def forwarded(place: StudyPlace, sender: Sender, t: float) -> float:
    """A live study of one of seven scanners: of CT and MR as above, of others one to three series within minutes."""
    modality, station = place.rng.choice(BEHIND)
    sender = Sender(sender.ae, modality, station)
    if modality in ("CT", "MR"):
        return (ct if modality == "CT" else mr)(place, sender, t)
    made = place.study(f"{modality} {place.rng.choice(('one', 'two'))}")
    for n in range(place.rng.randint(1, 3)):
        t = place.come(sender, made, t + place.between(5, 60), f"{modality} {'abc'[n]}", (1, 10))
    return t


# --- sites -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyKind:
    """A kind of site, which makes up a run from a seed."""

    name: str
    play: Play
    sender: Sender
    pause_s: float
    """Between the studies of one sender, in the mean."""
    pacs: Pacs = ""
    studies: int = STUDIES

    def make(self, seed: int) -> StudyPlace:
        """Draw by what comes, and not by who is asked: with a PACS and without one the same comes."""
        place = StudyPlace(seed, self.play.__name__, self.pacs)
        t = place.between(1, 60)
        for _ in range(self.studies):
            t = self.play(place, self.sender, t) + place.rng.expovariate(1 / self.pause_s)
        return place


CT, PT, MR = Sender("CT_1", "CT", "CT01"), Sender("PT_1", "PT", "PETCT"), Sender("MR_1", "MR", "MR01")
KINDS = [
    StudyKind("CT, reconstructions 10 to 30 min later", ct, CT, 600),
    StudyKind("PET/CT, bed by bed", pet, PT, 600),
    StudyKind("MR, eight series over 40 min", mr, MR, 600),
    StudyKind("migration", migrated, Sender("ARCHIVE", ""), 2),
    StudyKind("late reports and key images", reported, Sender("PACS", "CT", "CT01"), 900),
    StudyKind("late reports of few studies", seldom_reported, Sender("PACS", "CT", "CT01"), 900),
    StudyKind("two gateways", spread, Sender("PACS", "CT", "CT01"), 600),
    StudyKind("stored ones, then live ones", stored_then_live, Sender("PACS", ""), 600, studies=16),
    StudyKind("seven scanners behind one archive", forwarded, Sender("PACS", ""), 300),
]
ASKED = [
    *(replace(kind, name=f"{kind.name}; PACS receives", pacs="receives") for kind in KINDS if kind.play != migrated),
    replace(KINDS[0], name=f"{KINDS[0].name}; PACS forwards whole series", pacs="series by series"),
    *(replace(KINDS[n], name=f"{KINDS[n].name}; PACS holds all", pacs="holds") for n in (0, 3, 4, 6, 8)),
]
"""The same behind a PACS that can be asked."""
