"""The kill test of `make scale`: two gateways and two servers behind HAProxy, killed while images come."""

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from pydicom.dataset import Dataset
from sqlalchemy.engine import URL

from bench.faults import broken_copy
from bench.judging import PageFollower, StreamFollower, Trial, followed, judge_changes, judge_studies
from bench.rig.cluster import Member, Site, site
from bench.rig.haproxy import redispatched
from bench.rig.postgres import new_database
from bench.rig.processes import ROOT, copy_to_break
from bench.rig.senders import PacedSender, synthetic_series

IMAGES, ASSOCIATIONS = 1000, 8
FURTHER, FURTHER_SENDERS = 48, 4  # series of up to 20 images at the same time
OF_A_STUDY = 7  # series of a study
TWICE = 0.03  # so many of all images each association sends beside its own
PACE_S = 0.04  # mean pause of a sender between images: the kills meet images on their way
TRIAL_TIMEOUT_S = 400.0


class Progress:
    """Counts acknowledged images, and wakes who waits for a number of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._count = 0
        self._news = threading.Condition()

    def one_more(self) -> None:
        with self._news:
            self._count += 1
            self._news.notify_all()

    def wait_for(self, count: int) -> bool:
        """Wait until so many are acknowledged; return whether more were to come then."""
        with self._news:
            self._news.wait_for(lambda: self._count >= count, TRIAL_TIMEOUT_S)
            return self._count < self.total


def strike(members: Sequence[Member], progress: Progress, rng: random.Random) -> int:
    """Kill each, one after the other, at random moments, and start it again; return how many while images came."""
    moments = sorted(rng.sample(range(progress.total // 20, progress.total * 2 // 3), 2 * len(members)))
    on_the_way = 0
    for member, kill_at, start_at in zip(rng.sample(members, len(members)), moments[::2], moments[1::2], strict=True):
        on_the_way += progress.wait_for(kill_at)
        member.kill()
        progress.wait_for(start_at)
        member.restart()
    return on_the_way


def in_studies(series: list[list[Dataset]]) -> list[list[Dataset]]:
    """Put each few of the series into one study, which several senders and gateways then have parts of."""
    for n, images in enumerate(series):
        for ds in images:
            ds.StudyInstanceUID = series[n - n % OF_A_STUDY][0].StudyInstanceUID
    return series


def parts_of(series: list[list[Dataset]], rng: random.Random) -> list[list[list[Dataset]]]:
    """Split what is sent: per sender, one association after the other; the first series is split over eight."""
    first, *further = series
    parts = [first[n::ASSOCIATIONS] + rng.sample(first, round(TWICE * len(first))) for n in range(ASSOCIATIONS)]
    shuffled = [[rng.sample(part, len(part))] for part in parts]
    return shuffled + [further[n::FURTHER_SENDERS] for n in range(FURTHER_SENDERS)]


def run_all(senders: Sequence[PacedSender]) -> None:
    for sender in senders:
        sender.run()


# --- trials -------------------------------------------------------------------------------------------------------


def kill_test(postgres: URL, images: int, seed: str, break_it: str | None) -> Trial:
    """Run one trial, on a database and processes of its own."""
    with (
        new_database(postgres) as url,
        tempfile.TemporaryDirectory(prefix="scale-") as folder,
        site(Path(folder), url, gateways=2, servers=2, roots=broken_roots(Path(folder), break_it)) as here,
    ):
        return asyncio.run(_trial(here, images, random.Random(seed), forgets=break_it == "follower"))


async def _trial(site: Site, images: int, rng: random.Random, *, forgets: bool) -> Trial:
    began = time.monotonic()
    trial = Trial()
    series = in_studies([synthetic_series(n) for n in (images, *(rng.randint(1, 20) for _ in range(FURTHER)))])

    def send() -> tuple[list[list[Dataset]], set[str]]:
        acknowledged = send_and_strike(site, series, rng, trial)
        site.drain()
        return series, acknowledged

    async with site.client("followers") as http:
        followers = [StreamFollower(http, forgets=forgets), PageFollower(http)]
        changes = await followed(http, followers, send, trial)
        await judge_studies(http, series, trial)
    judge_changes([changes, *(follower.seen for follower in followers)], trial)
    trial.broken = followers[0].broken
    trial.repeated = sum(gateway.events("report.delayed") for gateway in site.gateways)
    trial.redispatched = redispatched(site.folder)
    trial.took_s = time.monotonic() - began
    return trial


def send_and_strike(site: Site, series: list[list[Dataset]], rng: random.Random, trial: Trial) -> set[str]:
    """Send all, and kill each gateway and each server on the way; return the acknowledged SOP Instance UIDs."""
    deadline = time.monotonic() + TRIAL_TIMEOUT_S
    parts = parts_of(series, rng)
    progress = Progress(sum(len(images) for part in parts for images in part))
    senders = [
        [PacedSender(site.scp_port, images, deadline, PACE_S, rng.random(), told=progress.one_more) for images in part]
        for part in parts
    ]
    with ThreadPoolExecutor(len(senders) + 2) as pool:
        kinds = (site.gateways, site.servers)
        strikes = [pool.submit(strike, members, progress, random.Random(rng.random())) for members in kinds]
        for sent in [pool.submit(run_all, some) for some in senders]:
            sent.result()
        trial.kills = sum(striking.result() for striking in strikes)
    return trial.count(chain.from_iterable(senders), sum(map(len, series)))


def broken_roots(folder: Path, break_it: str | None) -> tuple[Path, Path]:
    """Return where the gateway's program is, and the server's: one of them broken, if `break_it` says so."""
    gateway_root = broken_copy(folder, "answer") if break_it == "gateway" else ROOT
    return gateway_root, broken_server(folder) if break_it == "union" else ROOT


def broken_server(folder: Path) -> Path:
    """Copy this project with one change: counts are added up where the union is to be counted."""
    united = 'return max(int(known["NumInstances"]), instances, floor)'
    added = 'return int(known["NumInstances"]) + report.NumInstances'
    return copy_to_break(folder / "broken-server", "storage/merge.py", united, added)
