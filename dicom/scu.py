"""Call a PACS as SCU: make associations, with or without TLS, and read the answers on them.

This uses pynetdicom, blocks, and therefore runs in threads. Every wait has a bound.
"""

import socket
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_role
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from pynetdicom.transport import T_CONNECT, AssociationSocket

from common.errors import SeriesGatewayError
from common.settings import GatewaySettings, Peer
from dicom.statuses import PENDING, SUB_OPERATIONS_FAILED, SUCCESS
from dicom.tls import Tls, pacs_tls

MAX_MATCHES = 20_000  # a C-FIND with more matches is given up
MAX_CONTEXTS = 128  # of an association, since their IDs are the odd numbers of a byte (PS3.8 §9.3.2.2)
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
SYNTAXES: list[list[str | UID]] = [
    [*UNCOMPRESSED],
    *([uid] for uid in ALL_TRANSFER_SYNTAXES if uid not in UNCOMPRESSED),
]
"""The contexts for each storage class. An acceptor chooses one transfer syntax for a context, so each gets its own."""
CLASSES_AT_ONCE = (MAX_CONTEXTS - 1) // len(SYNTAXES)

ACCEPTED, REJECTED = 0, (1, 2)  # PS3.8 §9.3.3.2, §9.3.4

_Answer = tuple[Dataset, Dataset | None]
"""Status and identifier."""


class PacsUnavailable(SeriesGatewayError):
    """The PACS gave no answer, or an unusable one. The text says why."""


# --- associations -----------------------------------------------------------------------------------------------


class _Socket(AssociationSocket):
    """pynetdicom's socket, with two corrections: it is always closed, and every wait for bytes has a bound."""

    def _shutdown_socket(self) -> None:
        sock = self.socket
        super()._shutdown_socket()  # does not close a socket that was never connected
        if sock is not None:
            sock.close()

    def connect(self, primitive: T_CONNECT) -> None:
        super().connect(primitive)
        if self.socket is not None:
            self.socket.settimeout(self.assoc.network_timeout)


class _Caller(AE):
    """pynetdicom's AE, with two corrections for the thread of its upper layer.

    It is a daemon thread, so that the process can end while it hangs. If it raises because a peer's PDU or command is
    nonsense, the question ends as if nothing was answered.
    """

    sockets: list[_Socket]

    def _create_socket(self, assoc: Association, address: Any, tls_args: Any) -> AssociationSocket:
        run = assoc.dul.run

        def contained() -> None:
            try:
                run()
            except Exception:  # a foreign peer can send anything
                sock.close()
                assoc.dimse.msg_queue.put((None, None))

        assoc.dul.daemon = True
        assoc.dul.run = contained  # type: ignore[method-assign]
        sock = _Socket(assoc, address=address)
        sock.tls_args = tls_args
        self.sockets.append(sock)
        return sock


@dataclass(frozen=True, slots=True)
class Line:
    """A way to reach a PACS."""

    peer: Peer
    ae_title: str
    timeout_s: float
    tls: Callable[[], Tls] | None = None
    """Makes the TLS context of one association. None for clear text."""
    sockets: list[_Socket] = field(default_factory=list)
    """The sockets of all associations so far."""

    def hang_up(self) -> None:
        """End all associations from another thread. A PACS that sends a byte now and then could hold them for ever."""
        for sock in [made.socket for made in self.sockets if made.socket is not None]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @classmethod
    def to(cls, peer: Peer, settings: GatewaySettings) -> "Line":
        """Return the way to a PACS, according to the settings."""
        tls = (lambda: pacs_tls(settings)) if peer.tls else None
        return cls(peer, settings.ae_title, settings.pacs_timeout_s, tls)

    @contextmanager
    def associated(
        self, *abstract_syntaxes: str, scp_of: Collection[str] = (), **options: Any
    ) -> Iterator[Association]:
        """Make an association that accepts the first abstract syntax, and always end it. Raises PacsUnavailable."""
        ae = _Caller(self.ae_title)
        ae.sockets = self.sockets
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = self.timeout_s
        roles: list[Any] = [build_role(uid, scp_role=True) for uid in scp_of]
        tls = self.tls() if self.tls else None
        if tls is not None:
            options |= {"tls_args": (tls, self.peer.host)}
        contexts = _contexts(abstract_syntaxes, scp_of)
        called = self.peer.ae_title
        try:
            assoc = ae.associate(self.peer.host, self.peer.port, contexts, ae_title=called, ext_neg=roles, **options)
        except socket.gaierror as error:
            raise PacsUnavailable(f"no address belongs to the name {self.peer.host}") from error
        if not assoc.is_established:
            _close(assoc)
            raise PacsUnavailable(_rejection(assoc, abstract_syntaxes[0], tls))
        try:
            if not offers(assoc, abstract_syntaxes[0]):
                raise PacsUnavailable(_lacks(abstract_syntaxes[0]))  # noqa: TRY301 - the handler below closes the association
            yield assoc
        except BaseException:
            assoc.abort()
            _close(assoc)
            raise
        else:
            assoc.release()


def _close(assoc: Association) -> None:
    """Close the socket that pynetdicom may leave open if an association was not made, or was aborted."""
    if assoc.dul.socket is not None:
        assoc.dul.socket.close()


def _contexts(abstract_syntaxes: Collection[str], scp_of: Collection[str]) -> list[PresentationContext]:
    return [
        *(build_context(uid) for uid in abstract_syntaxes),
        *(build_context(uid, syntaxes) for uid in scp_of for syntaxes in SYNTAXES),
    ]


def _rejection(assoc: Association, abstract_syntax: str, tls: Tls | None) -> str:
    """Say why an association was not made, by the reason of the PACS (PS3.8 table 9-21) or of TLS."""
    unread = list(assoc.dul.to_user_queue.queue)  # an answer that pynetdicom had not read when the PACS closed
    said = next((said for said in (assoc.acceptor.primitive, *unread) if isinstance(said, A_ASSOCIATE)), None)
    if said is not None and said.result in REJECTED:
        return f"rejected the association: {said.reason_str}"
    if said is not None and said.result == ACCEPTED:  # pynetdicom aborts if no context was accepted
        return _lacks(abstract_syntax)
    return tls.said() if tls is not None and tls.problem is not None else "cannot be reached"


def _lacks(abstract_syntax: str) -> str:
    return f"does not offer {UID(abstract_syntax).name}"


def offers(assoc: Association, abstract_syntax: str) -> bool:
    """Tell if the PACS accepted a context with this abstract syntax."""
    return any(cx.abstract_syntax == abstract_syntax for cx in assoc.accepted_contexts)


# --- answers ----------------------------------------------------------------------------------------------------


def matches(line: Line, identifier: Dataset) -> Generator[Dataset | None]:
    """Yield each match of a C-FIND on an association of its own, as `matches_on` does. Raises PacsUnavailable."""
    deadline = time.monotonic() + line.timeout_s
    with (
        line.associated(StudyRootQueryRetrieveInformationModelFind) as assoc,
        matches_on(assoc, identifier, deadline, f"pacs_timeout_s={line.timeout_s:g}") as found,
    ):
        yield from found


@contextmanager
def matches_on(
    assoc: Association, identifier: Dataset, deadline: float, bound: str
) -> Iterator[Iterator[Dataset | None]]:
    """Send a C-FIND (PS3.4 §C.4.1); give each match, or None for one that cannot be decoded. Raises PacsUnavailable.

    This is a context, to be left before the association is: pynetdicom may hold a lock while it yields an answer, and
    its abort needs that. `bound` says in an error what the deadline is.
    """

    def each(answers: Iterator[_Answer]) -> Iterator[Dataset | None]:
        last = None
        for number, (status, ds) in enumerate(answers):
            code = status_of(status)
            if code in PENDING:
                if status is not last:  # pynetdicom returns a match twice if it cannot decode it
                    yield ds
                last = status
            elif code != SUCCESS:
                raise PacsUnavailable(f"C-FIND status 0x{code:04X}")
            if number > MAX_MATCHES or time.monotonic() > deadline:
                raise PacsUnavailable(f"not done after {number} matches or {bound}")

    with _closing(assoc.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind)) as answers:
        yield each(answers)


@contextmanager
def _closing(answers: Iterator[_Answer]) -> Iterator[Iterator[_Answer]]:
    """Close the answers before the association: pynetdicom may hold a lock while it yields, and its abort needs it."""
    with closing(cast(Generator[_Answer], answers)):
        yield answers


def status_of(status: Dataset) -> int:
    """Return the status of an answer. Raises PacsUnavailable if there is none: pynetdicom then returns an empty one."""
    if "Status" not in status:
        raise PacsUnavailable("broke off or did not answer in time")
    if (code := _number(status, "Status")) is None:
        raise PacsUnavailable("answered with an invalid status")
    return code


def retrieved(answers: Iterator[_Answer], most: int, deadline: float) -> int:
    """Return how many sub-operations a C-MOVE or C-GET of `most` images completed. Raises PacsUnavailable."""
    completed = 0
    with _closing(answers):
        for status, _ in answers:
            code = status_of(status)
            completed = _number(status, "NumberOfCompletedSuboperations") or completed
            if code not in (*PENDING, SUCCESS, SUB_OPERATIONS_FAILED):
                raise PacsUnavailable(f"retrieve status 0x{code:04X}")
            if time.monotonic() > deadline:
                raise PacsUnavailable("the retrieve did not end in time")
    return min(completed, most)


def _number(status: Dataset, keyword: str) -> int | None:
    """Return the value of a US, 0 to 65535; None if it is missing or invalid."""
    value = status.get(keyword)
    return value if isinstance(value, int) and 0 <= value < 2**16 else None
