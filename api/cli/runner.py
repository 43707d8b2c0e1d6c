"""Follow a server's changes and run a command for each wanted one: at least once, in order for each series or study.

`_follow` stores new changes as jobs (backlog.py); `run` starts the jobs that are due, with one task for each script.
Neither waits for the other: scripts run while the server is down, and changes are stored while a script is slow.
"""

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Annotated, Literal

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from api.answers import ChangePage
from api.cli.backlog import Backlog, Job, now
from api.cli.remote import Remote, Unreadable
from api.told import modalities_of, uid_of
from common.errors import SeriesGatewayError
from common.outgoing import backoff_s
from models import Change, Uid

POLL_S = 1.0  # pause before changes are asked for again, and before jobs are looked for
PAGE = 200  # changes in one request
MOST_WAITING = 1000  # waiting jobs from which on no further changes are read
RETRY_BASE_S = 1.0  # pause after a script's first failure; it doubles after each further one, …
RETRY_MAX_S = 300.0  # … up to this
UNREADABLE_MAX_S = 60.0  # longest pause if the server cannot be read
KILL_AFTER_S = 10.0  # how long a script may run after SIGTERM before SIGKILL
PLACES = ("SeriesInstanceUID", "StudyInstanceUID", "Number", "Revision", "NumInstances", "Missing", "Verdict")
"""The names that are replaced in braces. Their values are never empty and cannot be taken for an option."""
STUDY_PLACES = ("StudyInstanceUID", "Number", "Revision", "NumSeries", "NumInstances", "Missing", "Verdict")
"""Those that a study has."""
UID: TypeAdapter[str] = TypeAdapter(Annotated[Uid, Field(pattern=r"^[0-9A-Za-z.]+$")])  # safe in options, paths, shells

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """The command to run, how, and for which changes."""

    command: tuple[str, ...]
    modalities: frozenset[str]
    verdicts: frozenset[str]
    first_only: bool
    since: int | str
    jobs: int
    tries: int
    timeout_s: float
    subject: Literal["series", "study"] = "series"

    @property
    def places(self) -> Sequence[str]:
        """Return the names that are replaced in braces."""
        return PLACES if self.subject == "series" else STUDY_PLACES

    def wants(self, change: Change) -> bool:
        """Tell if the command has to run for a change. A conflict alone is not a new revision, so it does not."""
        if change.Kinds == ["conflict"] or change.Verdict not in self.verdicts or change.Subject != self.subject:
            return False
        return not self.modalities or not self.modalities.isdisjoint(modalities_of(change))


@dataclass(slots=True)
class Running:
    """A running script, and when it was started (time.monotonic)."""

    change: Change
    since: float


@dataclass
class Runner:
    """Runs one command for the changes of one server, with one file of jobs."""

    order: Order
    remote: Remote
    backlog: Backlog
    lock_fd: int
    show: Callable[[str], None] | None = None
    """Shows a script's output once it has ended. If None, scripts write to our own output."""
    running: dict[str, Running] = field(default_factory=dict)
    """The running scripts, by SeriesInstanceUID, or StudyInstanceUID of those for studies."""
    ended: int = 0
    given_up: int = 0
    problem: str | None = None
    """Why the server cannot be read now; None if it can."""
    _began: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, stop: asyncio.Event, *, once: bool) -> None:
        """Work until told to stop, or with `once` until the present changes are handled. Wait for running scripts.

        Raises SeriesGatewayError if a person has to decide, or with `once` if the server cannot be read; the waiting
        jobs are done first.
        """
        self.backlog.hurry()
        stopping = asyncio.create_task(self._wake_on(stop), name="stop")
        following = asyncio.create_task(self._follow(once=once), name="follow")
        following.add_done_callback(lambda _: self._news.set())
        try:
            async with asyncio.TaskGroup() as scripts:
                while not stop.is_set() and not (following.done() and self.backlog.counts()[0] == 0):
                    self._start(scripts)
                    await self._look_up()
            if following.done():
                following.result()
        finally:
            for task in (stopping, following):
                task.cancel()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._news.set()

    async def _look_up(self) -> None:
        """Wait for news, at most POLL_S: jobs may become due, or another command may replay some."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._news.wait()
        self._news.clear()

    # --- what is new ---

    async def _follow(self, *, once: bool) -> None:
        """Store wanted changes as jobs as they appear; with `once`, return when the present ones are stored."""
        failures = 0
        while True:
            try:
                caught_up = await self._read()
                failures, self.problem = 0, None
            except Unreadable as error:
                if once:
                    raise
                failures, self.problem = failures + 1, str(error)
                delay_s = backoff_s(failures, UNREADABLE_MAX_S, RETRY_BASE_S)
                log.warning("changes.unread", reason=self.problem)
                await asyncio.sleep(max(delay_s, error.retry_after_s))
                continue
            if caught_up and once:
                return
            if caught_up or self.backlog.counts()[0] >= MOST_WAITING:
                await asyncio.sleep(POLL_S)

    async def _read(self) -> bool:
        """Store the next page of changes, if there is room. Return if it was the last one for now."""
        place = self.backlog.place()
        if place is None or not self._began:
            place = await self._begin(place)
        if self.backlog.counts()[0] >= MOST_WAITING:
            return False
        only = {} if self.order.subject == "series" else {"subject": self.order.subject}
        page = await self.remote.get("changes", ChangePage, since=place, limit=PAGE, **only)
        if page.last > place:
            wanted = [change for change in page.changes if self.order.wants(change)]
            self.backlog.take(wanted, page.last, first_only=self.order.first_only)
            self._news.set()
        return page.done

    async def _begin(self, place: int | None) -> int:
        """Return the change to continue after; at the very first start, the change to begin after."""
        last = (await self.remote.get("changes", ChangePage, since="now")).last
        if place is None:
            place = last if self.order.since == "now" else int(self.order.since)
            self.backlog.take([], place, first_only=False)
        if place > last:
            raise SeriesGatewayError(
                f"the server's last change is {last}, but {place} was read before: is it another server, or was it "
                "restored from a backup? Move the file of --state away, and give --since"
            )
        self._began = True
        log.info("changes.followed", since=place)
        return place

    # --- scripts ---

    def _start(self, scripts: asyncio.TaskGroup) -> None:
        free = self.order.jobs - len(self.running)
        for job in self.backlog.due(now(), self.running, free) if free > 0 else ():
            self.running[uid_of(job.change)] = Running(job.change, time.monotonic())
            scripts.create_task(self._run(job), name=f"change {job.change.Number}")

    async def _run(self, job: Job) -> None:
        """Run the command once for one change, and store the outcome."""
        change, began = job.change, time.monotonic()
        told: dict[str, str | int] = {
            f"{self.order.subject}_instance_uid": uid_of(change),
            "revision": change.Revision,
            "change": change.Number,
        }
        try:
            argv = filled(self.order.command, change, self.order.places)
        except ValidationError:
            self._give_up(change, "its UID contains other characters than letters, digits and dots", told)
        else:
            problem = await self._problem_of(argv, change)
            seconds = round(time.monotonic() - began, 3)
            if problem is None:
                self.backlog.done(change.Number)
                self.ended += 1
                log.info("script.ended", **told, seconds=seconds)
            elif job.attempts + 1 >= self.order.tries:
                self._give_up(change, problem, told)
            else:
                delay_s = random.uniform(0.5, 1) * min(RETRY_MAX_S, RETRY_BASE_S * 2.0 ** min(job.attempts, 20))  # noqa: S311
                self.backlog.delay(change.Number, now() + delay_s, problem)
                log.warning("script.delayed", **told, seconds=seconds, reason=problem)
        finally:
            del self.running[uid_of(change)]
            self._news.set()

    def _give_up(self, change: Change, problem: str, told: Mapping[str, str | int]) -> None:
        self.backlog.fail(change.Number, problem)
        self.given_up += 1
        log.error("script.rejected", **told, reason=problem)

    async def _problem_of(self, argv: Sequence[str], change: Change) -> str | None:
        """Run a script; return what went wrong, or None if it succeeded."""
        with TemporaryFile() if self.show else contextlib.nullcontext() as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | variables(change),
                    pass_fds=[self.lock_fd],
                    start_new_session=True,  # Ctrl-C is for us alone: scripts are allowed to finish
                )
            except (OSError, ValueError) as error:
                return f"cannot be started: {getattr(error, 'strerror', None) or type(error).__name__}"
            problem = await self._ended(process)
            if output and self.show:
                self.show(_text(output))
            return problem

    async def _ended(self, process: asyncio.subprocess.Process) -> str | None:
        try:
            async with asyncio.timeout(self.order.timeout_s):
                code = await process.wait()
        except TimeoutError:
            await _end(process)
            return f"took longer than {self.order.timeout_s:g} s (--timeout)"
        return None if code == 0 else f"exit code {code}" if code > 0 else f"ended by signal {-code}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop a script and everything it has started: by SIGTERM, then by SIGKILL."""
    for number, wait_s in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await process.wait()
                return


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")


def unknown_places(command: Sequence[str], places: Sequence[str] = PLACES) -> list[str]:
    """Return the names in braces that are not replaced."""
    return [name for item in command for name in re.findall(r"\{([A-Za-z]\w*)\}", item) if name not in places]


def filled(command: Sequence[str], change: Change, places: Sequence[str] = PLACES) -> list[str]:
    """Return the command for one change; no shell reads it. Raises ValidationError if a UID is unsafe."""
    for uid in (uid_of(change), change.StudyInstanceUID):
        UID.validate_python(uid)
    values = {name: str(getattr(change, name)) for name in places}
    return [re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), item) for item in command]


def variables(change: Change) -> dict[str, str]:
    """Return the command's environment variables. Unknown values are empty."""
    told = {
        "SERIES_INSTANCE_UID": change.SeriesInstanceUID,
        "STUDY_INSTANCE_UID": change.StudyInstanceUID,
        "MODALITY": change.Modality,
        "SOURCE": change.Source,
        "KIND": " ".join(change.Kinds),
        "REVISION": change.Revision,
        "VERDICT": change.Verdict,
        "NUM_SERIES": change.NumSeries,
        "NUM_INSTANCES": change.NumInstances,
        "EXPECTED_INSTANCES": change.ExpectedInstances,
        "MISSING": change.Missing,
        "DOUBTFUL": "; ".join(change.Doubtful),
        "CHANGE": change.Number,
    }
    return {name: "" if value is None else str(value).replace("\0", "") for name, value in told.items()}
