"""Asks the PACS: how many instances has this series, and which are missing (PS3.4 Annex C); fetches what is missing.

In threads beside the event loop; every question is bounded in time and in matches. What a foreign PACS says is checked
here: what comes out of `ask` fits into a report.
"""

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from common.errors import GatewayError
from common.settings import GatewaySettings, Peer
from common.threads import in_thread
from dicom.header import read_instance
from dicom.scu import (
    CLASSES_AT_ONCE,
    SUCCESS,
    Line,
    PacsUnavailable,
    matches,
    offers,
    pacs_tls,
    retrieved,
    status_of,
)
from models import MAX_MISSING, Count, Instance, SeriesKey, Uid

INTERVAL_S = 0.02  # least time between two questions to one PACS
AT_ONCE = 4  # questions to one PACS at the same time
PATIENCE = 4  # times pacs_timeout_s until a whole question is given up
ABANDONED_S = 60.0  # how long a PACS is left alone then: its thread may hang in pynetdicom for ever
FETCHED_AT_ONCE = 50  # SOP Instance UIDs in one retrieve request: the list has to fit into 64 KiB
LIMIT_FROM = 100  # matches, from which on a round number may be where a PACS cuts off

MAX_PROBLEM = 200  # characters

T = TypeVar("T")
A_UID: TypeAdapter[str] = TypeAdapter(Uid)
A_COUNT: TypeAdapter[int] = TypeAdapter(Count)


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask about a series."""

    key: SeriesKey
    calling_ae_title: str
    """Of its sender, which is asked."""
    here: frozenset[str]
    """The SOP Instance UIDs of the revision that is open."""
    fetch: bool
    """Whether what is missing is to be fetched."""
    revision: int = 1
    """Of the series; the answer carries it back."""
    classes: frozenset[str] = frozenset()
    """The SOP Class UIDs of the images at hand."""
    quiet: bool = True
    """Nothing comes any more: what is missing is to be named, too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the PACS says of a series, and what is known of it here and at the server."""

    pacs: str
    here: frozenset[str]
    """The SOP Instance UIDs of the revision when it was asked."""
    known: int = 0
    """How many those, the journal's and the server's are together."""
    count: int | None = None
    """What the PACS has; None where it did not say."""
    confirmed: bool = False
    """It is just what is known: by UIDs where the PACS listed them, else by number."""
    missing: Sequence[str] = ()
    fetched: int = 0
    problem: str | None = None
    """What failed, in words; with a count, what failed after the PACS had said it."""
    revision: int = 1
    """Of the question."""


class Pacs:
    """Asks the senders that can be asked."""

    def __init__(
        self,
        settings: GatewaySettings,
        known: Callable[[SeriesKey], Awaitable[Collection[str] | None]],
        handle_store: Callable[[Instance], Coroutine[Any, Any, int]],
        *,
        undelivered: Callable[[SeriesKey], Awaitable[Collection[str]]] | None = None,
    ) -> None:
        """`known` gives the SOP Instance UIDs that the server has of a series, whichever gateway sent them; None
        where it cannot tell. `undelivered` gives those that the journal holds for it. Raises BadCertificate.
        """
        self._settings = settings
        self._peers: Mapping[str, Peer] = settings.pacs_by_ae_title
        if any(peer.tls for peer in self._peers.values()):
            pacs_tls(settings)  # a bad file shows here
        self._known = known
        self._undelivered = undelivered
        self._handle_store = handle_store
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._next_at: dict[str, float] = defaultdict(float)
        self._alone_until: dict[str, float] = defaultdict(float)
        self._listed_most: dict[str, int] = defaultdict(int)

    async def ask(self, question: Question) -> Answer:
        """Ask once. What fails is said in the answer, beside what the PACS had said until then."""
        peer = self._peers[question.calling_ae_title.strip()]
        answer = Answer(peer.ae_title, question.here, len(question.here), revision=question.revision)
        try:
            found = self._trusted(peer, await self._ask(peer, partial(_find, key=question.key)))
        except PacsUnavailable as error:
            return replace(answer, problem=str(error))
        if question.revision == 1 and found.is_all(question.here):
            return replace(answer, count=found.count, confirmed=True, problem=_joined(found.problem))
        known, cannot_tell = await self._all_known(question)
        answer = replace(answer, known=len(known), count=found.count, problem=_joined(found.problem, *cannot_tell))
        if cannot_tell:
            return answer
        if found.is_all(known):
            return replace(answer, confirmed=True)
        if not (question.quiet or question.fetch):
            return answer
        return await self._seek(peer, question, found, known, answer)

    async def _all_known(self, question: Question) -> tuple[set[str], list[str]]:
        """What is known here and at the server; what of that cannot be told.

        The journal is asked first: what is delivered in between is at the server then.
        """
        known, problems = set(question.here), []
        for who, told in (("the journal", self._undelivered), ("the server", self._known)):
            uids: Collection[str] | None = ()
            if told is not None:
                try:
                    uids = await told(question.key)
                except GatewayError:
                    uids = None
            if uids is None:
                problems.append(f"{who} cannot tell what it has")
            else:
                known.update(uids)
        return known, problems

    async def _seek(self, peer: Peer, question: Question, found: "Found", known: set[str], answer: Answer) -> Answer:
        """Name what only the PACS has, and fetch it where that is wanted."""
        problems = [found.problem]
        if found.images is None and found.count is not None and found.count > len(known):
            try:
                listed = await self._ask(peer, partial(_find_images, key=question.key))
            except PacsUnavailable as error:
                return replace(answer, problem=_joined(*problems, f"listing its images: {error}"))
            self._note_length(peer, listed)
            found = found.with_images(listed)
            problems.append(found.problem)
        missing = {uid: sop_class for uid, sop_class in (found.images or {}).items() if uid not in known}
        fetched = 0
        if question.fetch and missing:
            fetched, problem = await self._fetch(peer, question, missing)
            problems.append(problem)
        named = tuple(missing)[:MAX_MISSING]
        return replace(answer, count=found.count, missing=named, fetched=fetched, problem=_joined(*problems))

    def _trusted(self, peer: Peer, found: "Found") -> "Found":
        """Without its count, where the list that it is of may have been cut off by a limit of this PACS."""
        length = self._note_length(peer, found)
        if found.count is None or not _may_be_a_limit(length) or self._listed_most[peer.ae_title] > length:
            return found
        problem = _joined(found.problem, f"its list of {length} may be cut off: it never listed more")
        return replace(found, count=None, problem=problem)

    def _note_length(self, peer: Peer, found: "Found") -> int:
        length = 0 if found.images is None else max(found.matches, len(found.images))
        self._listed_most[peer.ae_title] = max(self._listed_most[peer.ae_title], length)
        return length

    async def _fetch(self, peer: Peer, question: Question, missing: Mapping[str, str]) -> tuple[int, str | None]:
        """How many came, and why not all did. Images of a class that the PACS did not say may be of those at hand."""
        loop = asyncio.get_running_loop()
        arrived: set[str] = set()

        def store(instance: Instance) -> int:
            """In pynetdicom's thread."""
            status = asyncio.run_coroutine_threadsafe(self._handle_store(instance), loop).result()
            if status == SUCCESS and instance.sop_instance_uid in missing:
                arrived.add(instance.sop_instance_uid)
            return status

        at_hand = "\\".join(sorted(question.classes))
        of_classes = {uid: sop_class or at_hand for uid, sop_class in missing.items()}
        do = partial(_get, missing=of_classes, store=store)
        if self._settings.fetch_missing == "move":
            do = partial(_move, uids=list(missing), to=self._settings.ae_title)
        try:
            fetched = await self._ask(peer, partial(do, key=question.key), _patience(len(missing)))
        except PacsUnavailable as error:
            return len(arrived), f"fetching: {error}"
        return fetched, None if fetched >= len(missing) else f"it gave {fetched} of {len(missing)} that are missing"

    async def _ask(self, peer: Peer, do: Callable[..., T], patience: float = PATIENCE) -> T:
        """Run in a thread, when it is this PACS's turn. Raises PacsUnavailable."""
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
        except GatewayError as error:
            raise PacsUnavailable(str(error)) from error
        except Exception as error:  # the edge to a foreign peer, which can say anything
            if not limit.expired():
                raise PacsUnavailable(type(error).__name__) from error
            self._alone_until[name] = loop.time() + ABANDONED_S
            line.hang_up()
            raise PacsUnavailable("did not end in time") from error
        finally:
            self._turns[name].release()


def _patience(images: int) -> float:
    """Times pacs_timeout_s until a retrieve of so many images is given up."""
    return PATIENCE + images / FETCHED_AT_ONCE * PATIENCE


def _joined(*problems: str | None) -> str | None:
    """Each once, and no more than fits where it is noted."""
    return "; ".join(dict.fromkeys(filter(None, problems)))[:MAX_PROBLEM] or None


def _may_be_a_limit(length: int) -> bool:
    """Whether somebody may have set that as the most that a PACS lists."""
    return length >= LIMIT_FROM and (length % 100 == 0 or length % 250 == 0 or length & (length - 1) == 0)


# --- in a thread ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What a PACS has of a series: how many images, and which, where it was asked that."""

    count: int | None
    """None where it cannot be told: what was listed is not all."""
    images: Mapping[str, str] | None = None
    """SOP Instance UID to SOP Class UID, '' where the PACS does not say it."""
    problem: str | None = None
    matches: int = 0
    """How long its list was, with all that is not of this series or cannot be used."""

    def is_all(self, known: Collection[str]) -> bool:
        """Whether that is what is known, by UIDs where there are some; nothing is never all."""
        if not self.count:
            return False
        return self.count == len(known) if self.images is None else set(self.images) == set(known)

    def with_images(self, listed: "Found") -> "Found":
        """With the list of what was counted: one that is shorter lacks something, one that is longer is later."""
        count, images = self.count or 0, listed.images or {}
        short = f"it has {count} and lists {len(images)}" if len(images) < count and listed.problem is None else None
        return Found(max(count, len(images)), images, _joined(listed.problem, short), listed.matches)


def probe(line: Line) -> str | None:
    """C-ECHO, then a C-FIND for a series that does not exist: why that is not answered. Raises PacsUnavailable."""
    nothing = SeriesKey("1.2.826.0.1.3680043.8.498.0", "1.2.826.0.1.3680043.8.498.0.1", None)
    with line.associated(Verification, StudyRootQueryRetrieveInformationModelFind) as assoc:
        if status_of(assoc.send_c_echo()) != SUCCESS:
            raise PacsUnavailable("refused C-ECHO")
        if not offers(assoc, StudyRootQueryRetrieveInformationModelFind):
            return "does not offer Study Root C-FIND"
    try:
        _find_images(line, key=nothing)
    except PacsUnavailable as error:
        return str(error)
    return None


def _find(line: Line, *, key: SeriesKey) -> Found:
    """The count at SERIES level, or, where the PACS gives none that can be read or zero, the list at IMAGE level."""
    identifier = _identifier("SERIES", key)
    identifier.NumberOfSeriesRelatedInstances = None
    counts: set[int | None] = set()
    dropped = length = 0
    for ds in matches(line, identifier):
        length += 1
        series = _uid(ds, "SeriesInstanceUID")
        if series == key.series_instance_uid and _text(ds, "NumberOfSeriesRelatedInstances") != "":
            counts.add(_count(ds))
        dropped += series is None
    unreadable = None in counts
    counts.discard(None)
    problem = _dropped("SERIES", dropped + unreadable, length)
    if len(counts) == 1 and (count := counts.pop()):
        return Found(count, problem=problem)
    found = _find_images(line, key=key)
    return replace(found, problem=_joined(problem, found.problem))


def _find_images(line: Line, *, key: SeriesKey) -> Found:
    """What is listed at IMAGE level; where some of that cannot be used, the list is not whole and counts nothing."""
    identifier = _identifier("IMAGE", key)
    identifier.SOPInstanceUID = identifier.SOPClassUID = None
    images: dict[str, str] = {}
    dropped = length = 0
    for ds in matches(line, identifier):
        length += 1
        series, uid = _uid(ds, "SeriesInstanceUID"), _uid(ds, "SOPInstanceUID")
        if series == key.series_instance_uid and uid is not None:
            images[uid] = _uid(ds, "SOPClassUID") or images.get(uid, "")
        else:  # PACS were seen to answer with other series
            dropped += series in (None, key.series_instance_uid)
    count = None if dropped else len(images)
    return Found(count, images, _dropped("IMAGE", dropped, length), length)


def _identifier(level: str, key: SeriesKey) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    ds.StudyInstanceUID, ds.SeriesInstanceUID = key.study_instance_uid, key.series_instance_uid
    return ds


def _dropped(level: str, dropped: int, length: int) -> str | None:
    return f"{dropped} of {length} matches at {level} level cannot be used" if dropped else None


def _text(ds: Dataset | None, keyword: str) -> str | None:
    """An element's value as text, whatever its VR; '' where it has none, None where it is no ASCII text.

    As it was sent, without pydicom's conversion, which raises what each VR may raise.
    """
    try:
        value = ds.get_item(keyword).value if ds is not None and keyword in ds else None
        if isinstance(value, MultiValue | list):
            value = "\\".join(map(str, value))
        text = value.decode("ascii") if isinstance(value, bytes) else str("" if value is None else value)
    except Exception:  # the edge to a foreign peer, which can say anything
        return None
    return text.strip(" \0")


def _uid(ds: Dataset | None, keyword: str) -> str | None:
    """None where there is none, or what stands there is no UID."""
    text = _text(ds, keyword)
    if text is not None and "\0" not in text:
        with suppress(ValidationError):
            return A_UID.validate_python(text)
    return None


def _count(ds: Dataset | None) -> int | None:
    """An IS with one value; None where it is no number, or one that no report takes."""
    text = _text(ds, "NumberOfSeriesRelatedInstances") or ""
    if re.fullmatch(r"\+?[0-9]{1,12}", text):
        with suppress(ValidationError):
            return A_COUNT.validate_python(int(text))
    return None


def _move(line: Line, *, key: SeriesKey, uids: Sequence[str], to: str) -> int:
    """C-MOVE to ourselves (PS3.4 §C.4.2): the images come by C-STORE as others do. Returns how many."""
    model, deadline = StudyRootQueryRetrieveInformationModelMove, _deadline(line, len(uids))
    with line.associated(model) as assoc:
        return sum(
            retrieved(assoc.send_c_move(_retrieve(key, some), to, model), len(some), deadline)
            for some in _batches(uids)
        )


def _get(line: Line, *, key: SeriesKey, missing: Mapping[str, str], store: Callable[[Instance], int]) -> int:
    """C-GET (PS3.4 §C.4.3): the images come on this association, and go the way of those that were sent.

    `missing`: SOP Instance UID to SOP Class UID; to several, as DICOM joins values, where it is not known which.
    """
    model, deadline = StudyRootQueryRetrieveInformationModelGet, _deadline(line, len(missing))
    arrived: set[str] = set()

    def handle_store(event: evt.Event) -> int:
        if time.monotonic() > deadline:  # one that sends without end holds a thread no longer
            event.assoc.abort()
        instance = read_instance(
            event.request.DataSet.getvalue(),  # type: ignore[union-attr]
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae_title=line.peer.ae_title,
            peer_address=line.peer.host,
            received_at=datetime.now(UTC),
        )
        status = store(instance)
        if status == SUCCESS:
            arrived.add(instance.sop_instance_uid)
        return status

    for classes in _class_groups(missing.values()):
        uids = [uid for uid, of in missing.items() if uid not in arrived and classes & set(of.split("\\"))]
        with line.associated(model, scp_of=classes, evt_handlers=[(evt.EVT_C_STORE, handle_store)]) as assoc:
            for some in _batches(uids):
                retrieved(assoc.send_c_get(_retrieve(key, some), model), len(some), deadline)
    return len(arrived & missing.keys())


def _class_groups(classes: Collection[str]) -> Iterator[set[str]]:
    """Those that can be proposed on one association, the most frequent first. Raises PacsUnavailable without any."""
    found = Counter(uid for of in classes for uid in of.split("\\") if uid)
    if not found:
        raise PacsUnavailable("it does not say the SOP Classes of what is missing")
    ordered = [uid for uid, _ in found.most_common()]
    for first in range(0, len(ordered), CLASSES_AT_ONCE):
        yield set(ordered[first : first + CLASSES_AT_ONCE])


def _deadline(line: Line, images: int) -> float:
    return time.monotonic() + line.timeout_s * _patience(images)


def _batches(uids: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(uids), FETCHED_AT_ONCE):
        yield list(uids[first : first + FETCHED_AT_ONCE])


def _retrieve(key: SeriesKey, uids: list[str]) -> Dataset:
    identifier = _identifier("IMAGE", key)
    identifier.SOPInstanceUID = uids
    return identifier
