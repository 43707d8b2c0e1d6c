"""What senders and followers were told, compared with the rows: lost, doubled, and whatever else is wrong."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydicom.dataset import Dataset

from api.told import uid_of
from bench.rig.senders import Sender
from models import Change

CATCH_UP_S = 60.0
POLL_S = 0.1
PAGE = 10  # changes


class Follower:
    """Is told every change there is; where that breaks off, it goes on behind the last one it has."""

    def __init__(self, http: httpx.AsyncClient, *, forgets: bool = False) -> None:
        self.seen: list[Change] = []
        self.broken = 0
        self._http = http
        self._forgets = forgets
        self._news = asyncio.Event()

    @property
    def last(self) -> int:
        return self.seen[-1].Number if self.seen else 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.follow(0 if self._forgets else self.last)
            except httpx.HTTPError:
                self.broken += 1
                await asyncio.sleep(POLL_S)

    async def reach(self, number: int) -> None:
        """Wait until it was told the change of this number, at most CATCH_UP_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                while self.last < number:
                    self._news.clear()
                    await self._news.wait()

    async def follow(self, since: int) -> None:
        """Take what is behind a number. Raises httpx.HTTPError."""
        raise NotImplementedError

    def take(self, change: Change) -> None:
        self.seen.append(change)
        self._news.set()


class StreamFollower(Follower):
    """Server-sent events, as a browser reads them (HTML, 9.2.6)."""

    async def follow(self, since: int) -> None:
        headers = {"Last-Event-ID": str(since)}
        async with self._http.stream("GET", "changes/stream", headers=headers) as response:
            response.raise_for_status()
            event: dict[str, str] = {}
            async for line in response.aiter_lines():
                name, _, value = line.partition(":")
                if line:
                    event[name] = value.removeprefix(" ")
                elif "data" in event:
                    change = Change.model_validate_json(event["data"])
                    if event["id"] != str(change.Number):
                        raise RuntimeError(f"the event with id {event['id']} holds change {change.Number}")
                    self.take(change)
                    event = {}


class PageFollower(Follower):
    """A page at a time, and again a little later."""

    async def follow(self, since: int) -> None:
        while True:
            answer = await self._http.get("changes", params={"since": since, "limit": PAGE})
            page = answer.raise_for_status().json()
            for change in page["changes"]:
                self.take(Change.model_validate(change))
            since = page["last"]
            if page["done"]:
                await asyncio.sleep(POLL_S)


@dataclass
class Trial:
    """What was seen of one trial."""

    acknowledged: int = 0
    cut_short: int = 0
    """Rounds of a sender in which an image was refused, cut off or left without an answer."""
    kills: int = 0
    """Processes killed while images came."""
    redispatched: int = 0
    repeated: int = 0
    """Posts tried again."""
    broken: int = 0
    """Times that the stream broke off."""
    changes: int = 0
    stored: int = 0
    studies: int = 0
    lost: int = 0
    doubled: int = 0
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def count(self, senders: Iterable[Sender], images: int) -> set[str]:
        """Count what senders were told of so many different images; return the acknowledged SOP Instance UIDs."""
        everyone = list(senders)
        acknowledged = set[str]().union(*(sender.acknowledged for sender in everyone))
        self.acknowledged += len(acknowledged)
        self.cut_short += sum(sender.cut_short for sender in everyone)
        if len(acknowledged) < images:
            self.problems.append(f"{images - len(acknowledged)} images were never acknowledged")
        return acknowledged


async def followed(
    http: httpx.AsyncClient,
    followers: Sequence[Follower],
    send: Callable[[], tuple[list[list[Dataset]], set[str]]],
    trial: Trial,
) -> list[Change]:
    """Send while followers are told of it, then judge the rows; return every change of a series.

    `send` returns when all has been stored: the series, and what was acknowledged of them.
    """
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follower.run(), name=type(follower).__name__) for follower in followers]
        series, acknowledged = await asyncio.to_thread(send)
        changes = await changes_of_series(http, trial)
        for follower in followers:
            await follower.reach(len(changes))
        for task in following:
            task.cancel()
        await judge_rows(http, series, acknowledged, trial, {uid_of(change): change for change in changes})
    return changes


async def judge_rows(
    http: httpx.AsyncClient,
    series: list[list[Dataset]],
    acknowledged: set[str],
    trial: Trial,
    last_changes: Mapping[str, Change],
) -> None:
    """Compare rows and their lists of instances with what was acknowledged."""
    rows = {row["SeriesInstanceUID"]: row for row in await everything(http, "series")}
    trial.doubled += len(rows.keys() - {images[0].SeriesInstanceUID for images in series})
    for images in series:
        uid, sent = images[0].SeriesInstanceUID, {ds.SOPInstanceUID for ds in images}
        if uid not in rows:
            trial.lost += len(sent & acknowledged)
            continue
        count, revision = rows[uid]["NumInstances"], rows[uid]["Revision"]
        listed = (await http.get(f"series/{uid}/instances")).raise_for_status().json()["SOPInstanceUIDs"]
        told = sent & acknowledged
        trial.stored += count
        trial.lost += max(len(told - set(listed)), len(told) - count)
        trial.doubled += max(0, count - len(sent)) + len(listed) - len(sent.intersection(listed))
        if set(listed) != told:
            trial.problems.append(f"{uid}: not exactly what was acknowledged is listed")
        last = last_changes.get(uid)
        if last is None or (last.Revision, last.NumInstances) != (revision, count):
            trial.problems.append(f"{uid}: its last change is {last}, its row has {revision=} {count=}")


async def judge_studies(http: httpx.AsyncClient, series: list[list[Dataset]], trial: Trial) -> None:
    """Compare the rows of studies with those of their series: one a study, its counts exactly theirs."""
    counted: dict[str, list[int]] = {}
    for row in await everything(http, "series"):
        counted.setdefault(row["StudyInstanceUID"], []).append(row["NumInstances"])
    studies = await everything(http, "studies")
    trial.studies = len(studies)
    trial.doubled += len(studies) - len({study["StudyInstanceUID"] for study in studies})
    rows = {study["StudyInstanceUID"]: (study["NumSeries"], study["NumInstances"]) for study in studies}
    wanted = {uid: (len(counts), sum(counts)) for uid, counts in counted.items()}
    sent = {str(images[0].StudyInstanceUID) for images in series}
    if rows != wanted or rows.keys() != sent:
        wrong = {uid: (rows.get(uid), wanted.get(uid)) for uid in rows.keys() | wanted.keys() | sent}
        told = {uid: both for uid, both in wrong.items() if both[0] != both[1] or both[0] is None}
        trial.problems.append(f"studies and what their series come to: {told}")


async def changes_of_series(http: httpx.AsyncClient, trial: Trial) -> list[Change]:
    """Return every change of a series; those of studies stand between them, and together they have no gap."""
    every = [Change.model_validate(change) for change in await everything(http, "changes", subject="any")]
    if [change.Number for change in every] != list(range(1, len(every) + 1)):
        trial.problems.append(f"a reader of all changes was told {len(every)}, not in order from 1 on")
    return [change for change in every if change.Subject == "series"]


def judge_changes(told: Sequence[list[Change]], trial: Trial) -> None:
    """Check that each reader was told the same, no number twice, revisions of each series in order.

    A conflict is no revision: it tells the one that stands.
    """
    trial.changes = len(told[0])
    for changes in told:
        trial.doubled += len(changes) - len({change.Number for change in changes})
        if changes != told[0]:
            trial.problems.append("two readers of changes were not told the same")
    revisions: Counter[str] = Counter()
    for change in told[0]:
        revisions[uid_of(change)] += change.Kinds != ["conflict"]
        if change.Revision != revisions[uid_of(change)]:
            trial.problems.append(f"change {change.Number} is revision {change.Revision} of its series, out of order")


async def everything(http: httpx.AsyncClient, what: str, **which: str) -> list[dict[str, Any]]:
    """Every series, or every change, a page after the other."""
    found: list[dict[str, Any]] = []
    place: dict[str, Any] = {}
    while True:
        page = (await http.get(what, params={"limit": 1000, **which, **place})).raise_for_status().json()
        found += page[what]
        if not page.get("next") and page.get("done", True):
            return found
        place = {"since": page["last"]} if what == "changes" else {"after": page["next"]}
