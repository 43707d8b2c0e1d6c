"""Asks the PACS: how many instances has this series, and which are missing (PS3.4 Annex C); fetches what is missing.

pynetdicom as SCU, in threads beside the event loop; every question is bounded in time and in matches.
"""

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, cast

from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from header import read_instance
from models import MAX_MISSING, GatewayError, Instance, SeriesKey
from settings import GatewaySettings, Peer
from threads import in_thread

CONFIRM_S = 0.2  # between two answers that have to be equal
INTERVAL_S = 0.02  # least time between two questions to one PACS
AT_ONCE = 4  # questions to one PACS at the same time
PATIENCE = 4  # times pacs_timeout_s until a whole question is given up
ABANDONED_S = 60.0  # how long a PACS is left alone then: its thread may hang in pynetdicom for ever
MAX_MATCHES = 20_000
FETCHED_AT_ONCE = 50  # SOP Instance UIDs in one retrieve request: the list has to fit into 64 KiB
MAX_CLASSES = 120  # presentation contexts, of at most 128

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)  # PS3.4 §C.4.1.1.4, §C.4.2.1.5
SUB_OPERATIONS_FAILED = 0xB000

T = TypeVar("T")
_Answer = tuple[Dataset, Dataset | None]
"""Status and identifier."""


class PacsUnavailable(GatewayError):
    """No answer, or one that cannot be used. The text says why."""


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

    @property
    def more(self) -> bool:
        """The PACS has more than is known."""
        return self.count is not None and self.count > self.known


class Pacs:
    """Asks the senders that can be asked."""

    def __init__(
        self,
        settings: GatewaySettings,
        known: Callable[[SeriesKey], Awaitable[Collection[str]]],
        handle_store: Callable[[Instance], Coroutine[Any, Any, int]],
    ) -> None:
        """`known` gives the SOP Instance UIDs that the server has of a series, whichever gateway sent them."""
        self._settings = settings
        self._peers: Mapping[str, Peer] = settings.pacs_by_ae_title
        self._known = known
        self._handle_store = handle_store
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._next_at: dict[str, float] = defaultdict(float)
        self._alone_until: dict[str, float] = defaultdict(float)

    async def ask(self, question: Question) -> Answer:
        """Ask once, and a second time where the first answer is what is known. Never raises PacsUnavailable."""
        peer = self._peers[question.calling_ae_title.strip()]
        here = len(question.here)
        try:
            found = await self._ask(peer, partial(_find, key=question.key))
            known = set(question.here)
            if found.count != here:
                known |= set(await self._known(question.key))
            if found.is_all(known):
                await asyncio.sleep(CONFIRM_S)
                again = await self._ask(peer, partial(_find, key=question.key))
                return Answer(peer.ae_title, here, len(known), again.count, again.is_all(known))
            missing = await self._missing(peer, question.key, found, known)
            fetched = 0
            if question.fetch and missing:
                fetched = await self._fetch(peer, question.key, missing)
            uids = tuple(missing)[:MAX_MISSING]
            return Answer(peer.ae_title, here, len(known), found.count, missing=uids, fetched=fetched)
        except PacsUnavailable as error:
            return Answer(peer.ae_title, here, problem=str(error))

    async def _missing(self, peer: Peer, key: SeriesKey, found: "Found", known: set[str]) -> dict[str, str]:
        """SOP Instance UID and SOP Class UID of what only the PACS has."""
        if found.count <= len(known) and found.images is None:
            return {}
        images = found.images or (await self._ask(peer, partial(_find_images, key=key))).images or {}
        return {uid: sop_class for uid, sop_class in images.items() if uid not in known}

    async def _fetch(self, peer: Peer, key: SeriesKey, missing: Mapping[str, str]) -> int:
        patience = PATIENCE + len(missing) / FETCHED_AT_ONCE * PATIENCE
        if self._settings.fetch_missing == "move":
            move = partial(_move, key=key, uids=list(missing), to=self._settings.ae_title)
            return await self._ask(peer, move, patience)
        loop = asyncio.get_running_loop()

        def store(instance: Instance) -> int:
            """In pynetdicom's thread."""
            return asyncio.run_coroutine_threadsafe(self._handle_store(instance), loop).result()

        return await self._ask(peer, partial(_get, key=key, missing=missing, store=store), patience)

    async def _ask(self, peer: Peer, do: Callable[..., T], patience: float = PATIENCE) -> T:
        """Run in a thread, when it is this PACS's turn. Raises PacsUnavailable."""
        loop, name, timeout_s = asyncio.get_running_loop(), peer.ae_title, self._settings.pacs_timeout_s
        if loop.time() < self._alone_until[name]:
            raise PacsUnavailable("left alone, for it did not end in time before")
        asked = False
        try:
            async with asyncio.timeout(timeout_s * patience), self._turns[name]:
                at = self._next_at[name] = max(loop.time(), self._next_at[name] + INTERVAL_S)
                await asyncio.sleep(at - loop.time())
                asked = True
                return await in_thread(partial(do, Line(peer, self._settings.ae_title, timeout_s)), "pacs")
        except PacsUnavailable:
            raise
        except TimeoutError as error:
            if asked:
                self._alone_until[name] = loop.time() + ABANDONED_S
            raise PacsUnavailable("did not end in time" if asked else "too many questions wait") from error
        except Exception as error:  # the edge to a foreign peer, which can say anything
            raise PacsUnavailable(type(error).__name__) from error


# --- in a thread ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What a PACS has of a series: how many images, and which, where it was asked that."""

    count: int
    images: Mapping[str, str] | None = None
    """SOP Instance UID to SOP Class UID."""

    def is_all(self, known: Collection[str]) -> bool:
        """Whether that is what is known, by UIDs where there are some; nothing is never all."""
        return self.count > 0 and (self.count == len(known) if self.images is None else set(self.images) == set(known))


class _Caller(AE):
    """pynetdicom's AE, without a thread that could keep the process from ending: its upper layer's was seen to hang."""

    def _create_socket(self, assoc: Association, *options: Any) -> Any:
        assoc.dul.daemon = True
        return super()._create_socket(assoc, *options)


@dataclass(frozen=True, slots=True)
class Line:
    """How to reach a PACS."""

    peer: Peer
    ae_title: str
    timeout_s: float

    @contextmanager
    def associated(
        self, *abstract_syntaxes: str, scp_of: Collection[str] = (), **options: Any
    ) -> Iterator[Association]:
        """An association that is surely ended. Raises PacsUnavailable."""
        ae = _Caller(self.ae_title)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = self.timeout_s
        contexts = [build_context(uid) for uid in abstract_syntaxes]
        contexts += [build_context(uid, ALL_TRANSFER_SYNTAXES) for uid in scp_of]
        roles: list[Any] = [build_role(uid, scp_role=True) for uid in scp_of]
        assoc = ae.associate(
            self.peer.host, self.peer.port, contexts, ae_title=self.peer.ae_title, ext_neg=roles, **options
        )
        if not assoc.is_established:
            raise PacsUnavailable(_rejection(assoc) if assoc.is_rejected else "cannot be reached")
        try:
            yield assoc  # a question whose context was not accepted raises ValueError
        except BaseException:
            assoc.abort()
            raise
        else:
            assoc.release()


def _rejection(assoc: Association) -> str:
    """With the reason that the PACS gives (PS3.8 table 9-21)."""
    said = assoc.acceptor.primitive
    return f"rejected the association: {said.reason_str}" if said is not None else "rejected the association"


def probe(line: Line, tls: ssl.SSLContext | None = None) -> str | None:
    """C-ECHO, then a C-FIND for a series that does not exist: why that is not answered. Raises PacsUnavailable."""
    nothing = SeriesKey("1.2.826.0.1.3680043.8.498.0", "1.2.826.0.1.3680043.8.498.0.1", None)
    options: dict[str, Any] = {"tls_args": (tls, None)} if tls else {}
    with line.associated(Verification, StudyRootQueryRetrieveInformationModelFind, **options) as assoc:
        if _status(assoc.send_c_echo()) != SUCCESS:
            raise PacsUnavailable("refused C-ECHO")
        if not any(cx.abstract_syntax == StudyRootQueryRetrieveInformationModelFind for cx in assoc.accepted_contexts):
            return "does not offer Study Root C-FIND"
    try:
        _find_images(line, key=nothing)
    except PacsUnavailable as error:
        return str(error)
    return None


def _find(line: Line, *, key: SeriesKey) -> Found:
    """The count at SERIES level, or, where the PACS gives none or zero, the list at IMAGE level."""
    identifier = _identifier("SERIES", key)
    identifier.NumberOfSeriesRelatedInstances = None
    matches = [ds for ds in _matches(line, identifier) if _is_about(ds, key)]
    counts = [int(ds.NumberOfSeriesRelatedInstances) for ds in matches if ds.get("NumberOfSeriesRelatedInstances")]
    if len(counts) == 1 and counts[0] > 0:
        return Found(counts[0])
    return _find_images(line, key=key)


def _find_images(line: Line, *, key: SeriesKey) -> Found:
    identifier = _identifier("IMAGE", key)
    identifier.SOPInstanceUID = identifier.SOPClassUID = None
    matches = [ds for ds in _matches(line, identifier) if _is_about(ds, key)]
    images = {str(ds.SOPInstanceUID): str(ds.get("SOPClassUID", "")) for ds in matches if ds.get("SOPInstanceUID")}
    return Found(len(images), images)


def _identifier(level: str, key: SeriesKey) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    ds.StudyInstanceUID, ds.SeriesInstanceUID = key.study_instance_uid, key.series_instance_uid
    return ds


def _is_about(ds: Dataset, key: SeriesKey) -> bool:
    """Whether a match is about the series that was asked for; PACS were seen to answer with others."""
    return str(ds.get("SeriesInstanceUID", "")) == key.series_instance_uid


def _matches(line: Line, identifier: Dataset) -> Iterator[Dataset]:
    """C-FIND (PS3.4 §C.4.1). Raises PacsUnavailable."""
    deadline = time.monotonic() + line.timeout_s
    with (
        line.associated(StudyRootQueryRetrieveInformationModelFind) as assoc,
        _closing(assoc.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind)) as answers,
    ):
        for number, (status, ds) in enumerate(answers):
            code = _status(status)
            if code in PENDING and ds is not None:
                yield ds
            elif code != SUCCESS:
                raise PacsUnavailable(f"C-FIND status 0x{code:04X}")
            if number > MAX_MATCHES or time.monotonic() > deadline:
                raise PacsUnavailable(f"not done after {number} matches or pacs_timeout_s={line.timeout_s:g}")


@contextmanager
def _closing(answers: Iterator[_Answer]) -> Iterator[Iterator[_Answer]]:
    """Closed before the association: pynetdicom yields what it cannot decode in a lock that its abort waits for."""
    with closing(cast(Generator[_Answer], answers)):
        yield answers


def _status(status: Dataset) -> int:
    """Raises PacsUnavailable where there was no answer: pynetdicom then gives an empty data set."""
    if "Status" not in status:
        raise PacsUnavailable("broke off or did not answer in time")
    return int(status.Status)


def _move(line: Line, *, key: SeriesKey, uids: Sequence[str], to: str) -> int:
    """C-MOVE to ourselves (PS3.4 §C.4.2): the images come by C-STORE as others do. Returns how many."""
    with line.associated(StudyRootQueryRetrieveInformationModelMove) as assoc:
        return sum(
            _retrieved(assoc.send_c_move(identifier, to, StudyRootQueryRetrieveInformationModelMove))
            for identifier in _retrieve_identifiers(key, uids)
        )


def _get(line: Line, *, key: SeriesKey, missing: Mapping[str, str], store: Callable[[Instance], int]) -> int:
    """C-GET (PS3.4 §C.4.3): the images come on this association, and go the way of those that were sent."""

    def handle_store(event: evt.Event) -> int:
        instance = read_instance(
            event.request.DataSet.getvalue(),  # type: ignore[union-attr]
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae_title=line.peer.ae_title,
            peer_address=line.peer.host,
            received_at=datetime.now(UTC),
        )
        return store(instance)

    classes = sorted(set(missing.values()) - {""})[:MAX_CLASSES]
    with line.associated(
        StudyRootQueryRetrieveInformationModelGet, scp_of=classes, evt_handlers=[(evt.EVT_C_STORE, handle_store)]
    ) as assoc:
        return sum(
            _retrieved(assoc.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet))
            for identifier in _retrieve_identifiers(key, list(missing))
        )


def _retrieve_identifiers(key: SeriesKey, uids: Sequence[str]) -> Iterator[Dataset]:
    for first in range(0, len(uids), FETCHED_AT_ONCE):
        identifier = _identifier("IMAGE", key)
        identifier.SOPInstanceUID = list(uids[first : first + FETCHED_AT_ONCE])
        yield identifier


def _retrieved(answers: Iterator[_Answer]) -> int:
    """How many sub-operations were completed. Raises PacsUnavailable."""
    completed = 0
    with _closing(answers):
        for status, _ in answers:
            code = _status(status)
            completed = int(status.get("NumberOfCompletedSuboperations", None) or completed)
            if code not in (*PENDING, SUCCESS, SUB_OPERATIONS_FAILED):
                raise PacsUnavailable(f"retrieve status 0x{code:04X}")
    return completed
