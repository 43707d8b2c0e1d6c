"""Ask the PACS what a series and its study have, and which images are missing (PS3.4 Annex C); fetch missing ones.

Questions run in threads beside the event loop, and are bounded in time and in matches. The answers of a foreign PACS
are checked, so that what `ask` returns fits into a report.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar

import structlog

from common import metrics
from common.errors import SeriesGatewayError
from common.settings import GatewaySettings, Peer
from common.threads import in_thread
from dicom.header import Wanted
from dicom.query_retrieve import (
    PATIENCE,
    Found,
    StudyAnswer,
    find,
    find_images,
    find_study,
    get,
    joined,
    move,
    patience,
)
from dicom.scu import Line, PacsUnavailable
from dicom.statuses import SUCCESS
from dicom.tls import pacs_tls
from gateway.questions import Answer, Question
from gateway.study_counts import PAUSE_S, StudyManners
from models import MAX_MISSING, CountsOfStudy, Instance, SeriesKey

INTERVAL_S = 0.02  # least time between two questions to one PACS
AT_ONCE = 4  # most questions to one PACS at the same time
ABANDONED_S = 60.0  # how long a PACS is not asked after a question to it hung, since its thread may hang for ever
LIMIT_FROM = 100  # number of matches from which on a round number may be a limit of the PACS


T = TypeVar("T")
log = structlog.get_logger()


class Pacs:
    """Asks the PACS of GATEWAY_PACS."""

    def __init__(
        self,
        settings: GatewaySettings,
        stored: Callable[[SeriesKey], Awaitable[Collection[str] | None]],
        handle_store: Callable[[Instance], Coroutine[Any, Any, int]],
        *,
        undelivered: Callable[[SeriesKey], Awaitable[Collection[str]]] | None = None,
    ) -> None:
        """Set up. Raises BadCertificate.

        `stored` returns the SOP Instance UIDs that the server has of a series, from any gateway, or None if it cannot
        tell. `undelivered` returns those in the journal that wait for the server.
        """
        self._settings = settings
        self._peers: Mapping[str, Peer] = settings.pacs_by_ae_title
        if any(peer.tls for peer in self._peers.values()):
            pacs_tls(settings)  # raises if a file is bad
        self._wanted = Wanted(settings.extras)
        self._stored = stored
        self._undelivered = undelivered
        self._handle_store = handle_store
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._next_at: dict[str, float] = defaultdict(float)
        self._alone_until: dict[str, float] = defaultdict(float)
        self._listed_most: dict[str, int] = defaultdict(int)
        self._studies = StudyManners()

    async def ask(self, question: Question) -> Answer:
        """Ask a question once. If something fails, the answer says so, and has what the PACS said before.

        1. Ask for the number of images. If exactly the images of a first revision are there, that is confirmed.
        2. Otherwise find out which images are known in all: here, in the journal, and at the server.
        3. If the PACS has exactly those, that is confirmed.
        4. Otherwise, once nothing comes any more, list what is missing, and fetch it if that is wanted.

        The first question also asks for the counts of the study. No answer to that is no problem of the series.
        """
        peer = self._peers[question.calling_ae_title.strip()]
        answer = Answer(peer.ae_title, question.here, len(question.here), revision=question.revision)
        study = self._studies.may_ask(peer.ae_title, asyncio.get_running_loop().time())
        try:
            found = self._trusted(peer, await self._ask(peer, partial(find, key=question.key, study=study)))
        except PacsUnavailable as error:
            return replace(answer, problem=str(error))
        answer = replace(answer, study=self._note_study(peer, found.study))
        if question.revision == 1 and found.is_all(question.here):
            return replace(answer, count=found.count, confirmed=True, problem=joined(found.problem))
        known_uids, cannot_tell = await self._all_known(question)
        answer = replace(answer, known=len(known_uids), count=found.count, problem=joined(found.problem, *cannot_tell))
        if cannot_tell:
            return answer
        if found.is_all(known_uids):
            return replace(answer, confirmed=True)
        if not (question.quiet or question.fetch):
            return answer
        return await self._seek(peer, question, found, known_uids, answer)

    async def count_study(self, calling_ae_title: str, study_instance_uid: str) -> CountsOfStudy:
        """Ask for the counts of a study. Raises PacsUnavailable."""
        peer = self._peers.get(calling_ae_title.strip())
        if peer is None:
            raise PacsUnavailable("GATEWAY_PACS of this gateway does not name it")
        if not self._studies.may_ask(peer.ae_title, asyncio.get_running_loop().time()):
            raise PacsUnavailable("left alone, for it gave no counts of studies before")
        counts = await self._ask(peer, partial(find_study, study_instance_uid=study_instance_uid))
        self._studies.note(peer.ae_title, asyncio.get_running_loop().time(), counted=True)
        return counts

    def _note_study(self, peer: Peer, answer: StudyAnswer | None) -> CountsOfStudy | None:
        """Return the counts of a study; note if a PACS gave none, and is to be left alone."""
        if answer is None:
            return None
        now = asyncio.get_running_loop().time()
        if self._studies.note(peer.ae_title, now, counted=answer.counts is not None):
            log.info("pacs.uncounted", pacs=peer.ae_title, reason=answer.problem, again_in_s=PAUSE_S)
        return answer.counts

    async def _all_known(self, question: Question) -> tuple[set[str], list[str]]:
        """Return the images that are known here and at the server, and problems in finding that out.

        The journal is asked first, so that a report which is delivered in between is found at the server.
        """
        known_uids, problems = set(question.here), []
        for who, told in (("the journal", self._undelivered), ("the server", self._stored)):
            uids: Collection[str] | None = ()
            if told is not None:
                try:
                    uids = await told(question.key)
                except SeriesGatewayError:
                    uids = None
            if uids is None:
                problems.append(f"{who} cannot tell what it has")
            else:
                known_uids.update(uids)
        return known_uids, problems

    async def _seek(self, peer: Peer, question: Question, found: Found, known_uids: set[str], answer: Answer) -> Answer:
        """List the images that only the PACS has, and fetch them if that is wanted."""
        problems = [found.problem]
        if found.images is None and found.count is not None and found.count > len(known_uids):
            try:
                listed = await self._ask(peer, partial(find_images, key=question.key))
            except PacsUnavailable as error:
                return replace(answer, problem=joined(*problems, f"listing its images: {error}"))
            self._note_length(peer, listed)
            found = found.with_images(listed)
            problems.append(found.problem)
        missing = {uid: sop_class for uid, sop_class in (found.images or {}).items() if uid not in known_uids}
        fetched = 0
        if question.fetch and missing:
            fetched, problem = await self._fetch(peer, question, missing)
            problems.append(problem)
        named = tuple(missing)[:MAX_MISSING]
        return replace(answer, count=found.count, missing=named, fetched=fetched, problem=joined(*problems))

    def _trusted(self, peer: Peer, found: Found) -> Found:
        """Return the answer, but without its count if a limit of the PACS may have cut off the list it comes from."""
        length = self._note_length(peer, found)
        if found.count is None or not _may_be_a_limit(length) or self._listed_most[peer.ae_title] > length:
            return found
        problem = joined(found.problem, f"its list of {length} may be cut off: it never listed more")
        return replace(found, count=None, problem=problem)

    def _note_length(self, peer: Peer, found: Found) -> int:
        length = 0 if found.images is None else max(found.matches, len(found.images))
        self._listed_most[peer.ae_title] = max(self._listed_most[peer.ae_title], length)
        return length

    async def _fetch(self, peer: Peer, question: Question, missing: Mapping[str, str]) -> tuple[int, str | None]:
        """Fetch missing images; return how many came, and why not all of them.

        If the PACS did not say the SOP Class of an image, those of the images here are tried.
        """
        loop = asyncio.get_running_loop()
        arrived: set[str] = set()

        def store(instance: Instance) -> int:
            """Keep a fetched instance. Called in pynetdicom's thread."""
            status = asyncio.run_coroutine_threadsafe(self._handle_store(instance), loop).result()
            if status == SUCCESS and instance.sop_instance_uid in missing:
                arrived.add(instance.sop_instance_uid)
            return status

        at_hand = "\\".join(sorted(question.classes))
        of_classes = {uid: sop_class or at_hand for uid, sop_class in missing.items()}
        do = partial(get, missing=of_classes, store=store, wanted=self._wanted)
        if self._settings.fetch_missing == "move":
            do = partial(move, uids=list(missing), to=self._settings.ae_title)
        try:
            fetched = await self._ask(peer, partial(do, key=question.key), patience(len(missing)))
        except PacsUnavailable as error:
            return len(arrived), f"fetching: {error}"
        return fetched, None if fetched >= len(missing) else f"it gave {fetched} of {len(missing)} missing images"

    async def _ask(self, peer: Peer, do: Callable[..., T], patience: float = PATIENCE) -> T:
        """Run a question in a thread, when it is its turn. Raises PacsUnavailable."""
        loop, name, timeout_s = asyncio.get_running_loop(), peer.ae_title, self._settings.pacs_timeout_s
        if loop.time() < self._alone_until[name]:
            raise PacsUnavailable("left alone, for it did not end in time before")
        try:
            async with asyncio.timeout(timeout_s * PATIENCE):
                await self._turns[name].acquire()
        except TimeoutError as error:
            raise PacsUnavailable("too many questions wait") from error
        limit, line = asyncio.timeout(timeout_s * patience), Line.to(peer, self._settings)
        try:
            async with limit:
                at = self._next_at[name] = max(loop.time(), self._next_at[name] + INTERVAL_S)
                await asyncio.sleep(at - loop.time())
                return await in_thread(partial(do, line), "pacs")
        except SeriesGatewayError as error:
            raise PacsUnavailable(str(error)) from error
        except Exception as error:  # a foreign peer can send anything
            if not limit.expired():
                raise PacsUnavailable(type(error).__name__) from error
            self._alone_until[name] = loop.time() + ABANDONED_S
            line.hang_up()
            raise PacsUnavailable("did not end in time") from error
        finally:
            self._turns[name].release()


def _may_be_a_limit(length: int) -> bool:
    """Tell if a number may be a configured limit of a PACS: a round number, or a power of two."""
    return length >= LIMIT_FROM and (length % 100 == 0 or length % 250 == 0 or length & (length - 1) == 0)


class Asking:
    """Asks questions in the background as long as the context is open, and passes the answers on.

    At the end open questions are cancelled, and no more are asked.
    """

    def __init__(self, pacs: Pacs, answered: Callable[[SeriesKey, Answer], Awaitable[None]]) -> None:
        self._pacs = pacs
        self._answered = answered
        self._tasks = asyncio.TaskGroup()
        self._open: set[asyncio.Task[None]] = set()
        self._ended = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        self._ended = True
        for task in self._open:
            task.cancel()
        await self._tasks.__aexit__(*raised)

    def ask(self, question: Question) -> None:
        """Begin to ask a question."""
        if not self._ended:
            task = self._tasks.create_task(self._ask(question), name="ask")
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _ask(self, question: Question) -> None:
        answer = await self._pacs.ask(question)
        outcome = "confirmed" if answer.confirmed else "failed" if answer.count is None else "differs"
        metrics.pacs_questions.labels(outcome).inc()
        await self._answered(question.key, answer)
